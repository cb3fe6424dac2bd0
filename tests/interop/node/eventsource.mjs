import { EventSource } from "eventsource";
import { follow } from "./native.mjs";

follow(EventSource);
