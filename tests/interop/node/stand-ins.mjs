// fetch-event-source is made for browsers: what it touches of one.

globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
