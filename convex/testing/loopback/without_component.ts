import { convexTest } from "convex-test";
import schema from "../../without-component/convex/schema.js";
import { serve } from "./answer.js";

serve(convexTest(schema, import.meta.glob("../../without-component/convex/**/*.{js,ts}")));
