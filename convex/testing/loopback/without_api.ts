import { convexTest } from "convex-test";
import schema from "../../without-api/convex/schema.js";
import { serve } from "./answer.js";

serve(convexTest(schema, import.meta.glob("../../without-api/convex/**/*.{js,ts}")));
