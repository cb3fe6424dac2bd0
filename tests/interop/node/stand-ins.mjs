// fetch-event-source is made for browsers. These are the globals of a browser that it uses.

globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
