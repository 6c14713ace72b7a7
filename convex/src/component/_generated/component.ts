import type { FunctionReference } from "convex/server";
import type { api } from "./api.js";

/** The component's public functions as the app that installs it sees them: internal ones. */
export type ComponentApi<Name extends string | undefined = string | undefined> = Installed<
  typeof api,
  Name
>;

type Installed<Api, Name extends string | undefined> = {
  [Key in keyof Api]: Api[Key] extends FunctionReference<infer Type, "public", infer Args, infer Result>
    ? FunctionReference<Type, "internal", Args, Result, Name>
    : Installed<Api[Key], Name>;
};
