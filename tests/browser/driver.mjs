// Drives one Chromium for all tests. Each line on the standard input calls a method of Playwright:
//
//   { "id": 7, "on": 2, "call": "newPage", "args": [], "as": 3 }
//
// The browser has the number 0, and the object that a call returns gets the number `as`. The answer
// is a line with `id` and `value` or `error`. The browser ends with the input.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";

const [packages, program] = process.argv.slice(2);
const { chromium } = createRequire(`${packages}/`)("playwright-core");

const browser = await chromium.launch({
  executablePath: program,
  timeout: 120_000,
  // Playwright disables the back/forward cache, which the tests need.
  ignoreDefaultArgs: ["--disable-back-forward-cache"],
  args: ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const objects = new Map([[0, browser]]);

async function act({ on, call, args, as }) {
  const result = await objects.get(on)[call](...args);
  if (as === undefined) return isPlain(result) ? result : null;
  objects.set(as, result);
  if (call === "newPage") equip(result);
  return null;
}

// Whether a value can be written as JSON. Handles and responses cannot.
function isPlain(value) {
  return value === null || typeof value !== "object" || Array.isArray(value) || Object.getPrototypeOf(value) === Object.prototype;
}

function equip(page) {
  // Errors that no script of the page caught.
  const errors = [];
  page.on("pageerror", error => errors.push(error.message));
  page.errors = () => errors;

  // Playwright's own `waitForFunction` evaluates a string inside of the page, which the content
  // security policy of a page may forbid.
  page.until = async (expression, milliseconds) => {
    const end = Date.now() + milliseconds;
    for (let problem = "";;) {
      try {
        if (await page.evaluate(expression)) return;
      } catch (error) {
        problem = `: ${error.message}`; // the page may be navigating
      }
      if (Date.now() > end) throw new Error(`not within ${milliseconds} ms${problem}`);
      await setTimeout(20);
    }
  };
}

// The test process may have ended.
process.stdout.on("error", () => {});

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  // Not awaited, so that commands of several tests run at the same time.
  act(command)
    .then(value => ({ value }), error => ({ error: error.message }))
    .then(answer => console.log(JSON.stringify({ id: command.id, ...answer })));
}
await browser.close();
