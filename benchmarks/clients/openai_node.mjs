// The openai package of npm: chats and completions, whole and streamed.
import OpenAI from "openai";

const { URL: baseURL, MODEL: model, CHAT } = process.env;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Is it a good idea?" }];
const greedy = { temperature: 0, max_tokens: 8 };

async function asked(what, ask) {
  let passed = false, detail = "";
  try { passed = Boolean(await ask()); } catch (error) { detail = `${error.name}: ${error.message}`; }
  console.log("RESULT " + JSON.stringify({ asked: what, passed, detail: detail.slice(0, 600) }));
}

await asked("chat, whole and streamed", async () => {
  const whole = await client.chat.completions.create({ model, messages, ...greedy });
  let text = "";
  for await (const event of await client.chat.completions.create({ model, messages, ...greedy, stream: true }))
    text += event.choices[0]?.delta?.content ?? "";
  return text === whole.choices[0].message.content;
});
await asked("completions: a list", async () => {
  const found = await client.completions.create({ model, prompt: ["The", "Is it"], ...greedy });
  return found.choices.map((choice) => choice.index).join() === "0,1";
});
await asked("tools: required call, streamed", async () => {
  const parameters = { type: "object", properties: { city: { enum: ["Bern", "Oslo"] } }, required: ["city"] };
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const ask = { model: CHAT, messages, tools, tool_choice: "required", temperature: 0, max_tokens: 64 };
  const found = await client.chat.completions.stream(ask).finalChatCompletion();
  return JSON.parse(found.choices[0].message.tool_calls[0].function.arguments).city.length === 4;
});
await asked("responses, streamed", async () => {
  let text = "", last = "";
  const ask = { model: CHAT, input: "Is it a good idea?", max_output_tokens: 16, stream: true };
  for await (const event of await client.responses.create(ask)) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event.type;
  }
  return last === "response.completed" || last === "response.incomplete";
});
