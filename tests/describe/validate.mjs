// Validates `document.json` against the schema of OpenAPI documents, and the events of `events.json`
// against the `itemSchema` of its stream. Prints the problems as a JSON list.
import { readFileSync } from "node:fs";
import { Validator } from "@seriousme/openapi-schema-validator";
import { Ajv2020 } from "ajv/dist/2020.js";

const read = file => JSON.parse(readFileSync(file, "utf8"));
const [document, events] = [read("document.json"), read("events.json")];
const validator = new Validator();
const { valid, errors } = await validator.validate(structuredClone(document));
const problems = [];
if (!valid) problems.push(`document: ${JSON.stringify(errors)}`);
if (validator.version !== "3.2") problems.push(`document: version ${validator.version}`);

// The formats are annotations. Unknown keywords, for example from a typing error, are problems.
const ajv = new Ajv2020({ strict: true, validateFormats: false, allErrors: true, strictRequired: false, strictTypes: false });
ajv.addVocabulary(["components", "example", "discriminator"]);
const check = schema => {
  const validate = ajv.compile({ ...schema, components: document.components });
  return value => (validate(value) ? [] : validate.errors.map(({ instancePath, message }) => `${instancePath} ${message}`));
};
try {
  const { itemSchema } = document.paths["/events"].get.responses[200].content["text/event-stream"];
  const checkItem = check(itemSchema);
  const checks = new Map(itemSchema.oneOf.map(({ properties: { event, data } }) => [event.enum[0], check(data.contentSchema)]));
  for (const event of events) {
    problems.push(...checkItem(event).map(problem => `${event.event}: ${problem}`));
    // A validator takes `contentSchema` for an annotation.
    const inData = checks.get(event.event)?.(JSON.parse(event.data)) ?? ["not described"];
    problems.push(...inData.map(problem => `data of ${event.event}: ${problem}`));
  }
} catch (error) {
  problems.push(`schema: ${error.message}`);
}
console.log(JSON.stringify(problems));
