// The whole life of a tuning job by OpenAI's client for node. What a cluster would do is asked for on stdout, one JSON
// object a line, and answered by a line on stdin.
import assert from "node:assert/strict";
import fs from "node:fs";
import readline from "node:readline";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const ask = async (what) => {
  console.log(JSON.stringify(what));
  await answers.next();
};
const all = async (page) => {
  const found = [];
  for await (const item of page) found.push(item);
  return found;
};
const refused = (call, status, words) =>
  assert.rejects(call, (error) => error.status === status && words.test(error.message));

const file = await client.files.create({ file: fs.createReadStream("train.jsonl"), purpose: "fine-tune" });
assert.equal(file.filename, "train.jsonl");
assert.equal((await client.files.waitForProcessing(file.id)).status, "processed");
assert.equal(await (await client.files.content(file.id)).text(), fs.readFileSync("train.jsonl", "utf8"));

let job = await client.fineTuning.jobs.create({
  model: "demo",
  training_file: file.id,
  method: { type: "dpo", dpo: { hyperparameters: { n_epochs: "auto", beta: 0.1 } } },
  suffix: "node",
  metadata: { by: "node" },
});
assert.equal(job.status, "validating_files");
assert.equal(job.method.dpo.hyperparameters.beta, 0.1);

const stream = await client.get(`/fine_tuning/jobs/${job.id}/events`, { query: { stream: true }, stream: true });
const events = [];
for await (const event of stream) {
  if (events.push(event) === 1) await ask({ do: "succeed", id: job.id });
}
assert.equal(events.length, 5);
assert.equal(events.at(-1).message, "The job is now succeeded");
const listed = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 2 }));
assert.deepEqual(listed.reverse(), events);

job = await client.fineTuning.jobs.retrieve(job.id);
assert.equal(job.status, "succeeded");
assert.match(job.fine_tuned_model, /^node-[0-9a-f]{8}@1$/);
const [checkpoint] = await all(client.fineTuning.jobs.checkpoints.list(job.id));
assert.equal(checkpoint.fine_tuned_model_checkpoint, job.fine_tuned_model);
assert.equal(checkpoint.metrics.valid_loss, 0.5);

const bad = await client.fineTuning.jobs.create({ model: "demo", training_file: file.id });
await ask({ do: "fail", id: bad.id, with: ["train.jsonl, line 2: no messages"] });
assert.match((await client.fineTuning.jobs.retrieve(bad.id)).error.message, /line 2/);

const made = [];
for (let i = 0; i < 5; i++) {
  const one = await client.fineTuning.jobs.create({ model: "demo", training_file: file.id, metadata: { run: "p" } });
  made.unshift(one.id);
}
const pages = await all(client.fineTuning.jobs.list({ limit: 2, metadata: { run: "p" } }));
assert.deepEqual(pages.map((one) => one.id), made);
assert.equal((await client.fineTuning.jobs.pause(made[0])).status, "paused");
assert.equal((await client.fineTuning.jobs.resume(made[0])).status, "queued");
await refused(client.files.delete(file.id), 409, /is used by/);
for (const id of made) assert.equal((await client.fineTuning.jobs.cancel(id)).status, "cancelled");
await refused(client.fineTuning.jobs.cancel(made[0]), 400, /cancelled/);
await refused(client.fineTuning.jobs.create({ model: "gpt-4o", training_file: file.id }), 404, /does not exist/);
await refused(client.files.create({ file: new File(["x"], "a.txt"), purpose: "vision" }), 400, /allowed: fine-tune/);

const uploaded = await client.files.create({ file: new File(["{}\n"], "b.jsonl"), purpose: "fine-tune" });
const files = (await all(client.files.list({ limit: 1 }))).map((one) => one.id);
assert.ok(files.includes(file.id) && files.includes(uploaded.id));
assert.equal((await client.files.delete(file.id)).deleted, true);
await refused(client.files.retrieve(file.id), 404, /no such file/);
console.log(JSON.stringify({ do: "done" }));
process.exit(0);
