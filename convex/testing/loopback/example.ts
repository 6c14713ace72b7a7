import { deployExample } from "../example_app.js";
import { serve } from "./answer.js";

serve(deployExample());
