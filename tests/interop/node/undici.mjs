import { EventSource } from "undici";
import { follow } from "./native.mjs";

follow(EventSource);
