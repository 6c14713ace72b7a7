/** The example's page with a client of a deployment on loopback; otherwise the same as main.tsx. */
import { show } from "../../example/src/show.js";
import { loopbackClient } from "./react_client.js";

show(loopbackClient(location.origin));
