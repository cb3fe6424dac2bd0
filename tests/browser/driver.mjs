// Drives one Chromium for all tests. Each line on the standard input calls a method of Playwright:
//
//   { "id": 7, "on": 2, "call": "newPage", "args": [], "as": 3 }
//
// The browser is number 0, and what a call returns is number `as` from then on. The answer is a line with `id` and `value`
// or `error`. When the input ends, so does the browser.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";

const [packages, program] = process.argv.slice(2);
const { chromium } = createRequire(`${packages}/`)("playwright-core");

const browser = await chromium.launch({
  executablePath: program,
  // Playwright turns off what browsers do when somebody goes back.
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

// What can be written as JSON; handles and responses cannot.
function isPlain(value) {
  return value === null || typeof value !== "object" || Array.isArray(value) || Object.getPrototypeOf(value) === Object.prototype;
}

function equip(page) {
  // Errors that no script of the page caught.
  const errors = [];
  page.on("pageerror", error => errors.push(error.message));
  page.errors = () => errors;

  // Playwright's own way to wait evaluates a string inside of the page, which the policy of a page may forbid.
  page.until = async (expression, milliseconds) => {
    const end = Date.now() + milliseconds;
    for (let problem = "";;) {
      try {
        if (await page.evaluate(expression)) return;
      } catch (error) {
        problem = `: ${error.message}`; // it goes to another page, perhaps
      }
      if (Date.now() > end) throw new Error(`not within ${milliseconds} ms${problem}`);
      await setTimeout(20);
    }
  };
}

// Nobody may be there any more.
process.stdout.on("error", () => {});

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  // Not awaited: commands of several tests go on at once.
  act(command)
    .then(value => ({ value }), error => ({ error: error.message }))
    .then(answer => console.log(JSON.stringify({ id: command.id, ...answer })));
}
await browser.close();
