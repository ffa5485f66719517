// A session of the openai client for Node: run as `node openai_session.mjs BASE_URL`; prints "done" at its end.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];
const ask = { model: "m", messages, max_tokens: 16, temperature: 0 };

const whole = await client.chat.completions.create(ask);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);

const parameters = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", description: "Weather", parameters } }];
const asked = { ...ask, max_tokens: 100, tools, tool_choice: "required" };
const called = await client.chat.completions.create(asked);
assert.ok(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city);
const runner = client.chat.completions.stream(asked);
const final = await runner.finalChatCompletion();
assert.equal(final.choices[0].message.tool_calls[0].function.name, "get_weather");

const schema = { type: "object", properties: { n: { enum: [1, 2] } }, required: ["n"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "n", strict: true, schema } };
const shaped = await client.chat.completions.create({ ...ask, max_tokens: 60, response_format: format });
assert.ok([1, 2].includes(JSON.parse(shaped.choices[0].message.content).n));

const vectors = await client.embeddings.create({ model: "m", input: ["a", "b"] });
assert.equal(vectors.data.length, 2);
assert.ok(vectors.data[0].embedding.length > 8);

const response = await client.responses.create({ model: "m", input: "Say hello.", max_output_tokens: 8 });
assert.ok(response.output_text.length > 0);

await assert.rejects(client.chat.completions.create({ ...ask, messages: [] }), OpenAI.BadRequestError);
console.log("done");
