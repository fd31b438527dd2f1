// The official Node client against a running Attune; address, key and rows come from the environment as in
// tests/python/conformance. NODE_PATH is the folder of the client.
'use strict';
const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const fs = require('node:fs');
const { before, test } = require('node:test');
const OpenAI = require('openai');

const { ATTUNE_ROWS, ATTUNE_ANSWER } = process.env;
const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: 'user', content: 'question 5' }];
const content = fs.readFileSync(ATTUNE_ROWS);
const ended = (job) => ['succeeded', 'failed', 'cancelled'].includes(job.status);
let file, job;

async function until(what, wanted, seconds = 180) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const found = await what();
    if (wanted(found)) return found;
    assert.ok(Date.now() < deadline, JSON.stringify(found));
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

async function all(pages) {
  const found = [];
  for await (const one of pages) found.push(one);
  return found;
}

const refused = (status, param, call) =>
  assert.rejects(call, (error) => error instanceof OpenAI.APIError && error.status === status && error.param === param);

before(async () => {
  file = await client.files.create({ file: fs.createReadStream(ATTUNE_ROWS), purpose: 'fine-tune' });
  const made = await client.fineTuning.jobs.create({
    model: 'tiny', training_file: file.id, validation_file: file.id, seed: 7, suffix: 'node', metadata: { team: 'node' },
    method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 6, batch_size: 4 } } },
    trainer: { learning_rate: 0.01 },
  });
  job = await until(() => client.fineTuning.jobs.retrieve(made.id), ended);
  assert.equal(job.status, 'succeeded', JSON.stringify(job));
});

test('files are kept, listed, read and deleted', async () => {
  assert.equal(file.object, 'file');
  assert.equal(file.bytes, content.length);
  const other = await client.files.create({
    file: await OpenAI.toFile(content, 'other.jsonl'), purpose: 'fine-tune',
    expires_after: { anchor: 'created_at', seconds: 3600 },
  });
  assert.equal(other.expires_at, other.created_at + 3600);
  assert.deepEqual(Buffer.from(await (await client.files.content(other.id)).arrayBuffer()), content);
  const ids = (await all(client.files.list({ limit: 1, order: 'asc', purpose: 'fine-tune' }))).map((f) => f.id);
  assert.ok(ids.includes(file.id) && ids.includes(other.id) && new Set(ids).size === ids.length);
  assert.equal((await client.files.delete(other.id)).deleted, true);
  await assert.rejects(client.files.retrieve(other.id), OpenAI.NotFoundError);
});

test('an upload comes in parts', async () => {
  const about = { bytes: content.length, filename: 'parts.jsonl', mime_type: 'application/jsonl', purpose: 'fine-tune' };
  const upload = await client.uploads.create(about);
  assert.equal(upload.status, 'pending');
  const half = content.length >> 1;
  const part = async (bytes) => client.uploads.parts.create(upload.id, { data: await OpenAI.toFile(bytes, 'part') });
  const last = await part(content.subarray(half));
  const first = await part(content.subarray(0, half));
  const md5 = crypto.createHash('md5').update(content).digest('hex');
  const done = await client.uploads.complete(upload.id, { part_ids: [first.id, last.id], md5 });
  assert.equal(done.status, 'completed');
  assert.equal(done.file.bytes, content.length);
  const left = await client.uploads.create(about);
  assert.equal((await client.uploads.cancel(left.id)).status, 'cancelled');
});

test('a job is filled in, listed and reported', async () => {
  assert.match(job.fine_tuned_model, /^ft:tiny:.*:node:/);
  assert.equal(job.method.supervised.hyperparameters.n_epochs, 6);
  assert.ok(job.trained_tokens > 0 && job.finished_at >= job.created_at && job.error === null);
  const found = await all(client.fineTuning.jobs.list({ limit: 1, metadata: { team: 'node' } }));
  assert.deepEqual(found.map((j) => j.id), [job.id]);
  const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 7 }));
  assert.ok(events.length > 20 && new Set(events.map((e) => e.id)).size === events.length);
  const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
  assert.ok(checkpoints.length > 0 && checkpoints.every((c) => c.fine_tuning_job_id === job.id));
  const { result_files: results } = await until(
    () => client.fineTuning.jobs.retrieve(job.id), (j) => j.result_files.length > 0, 30);
  assert.match(await (await client.files.content(results[0])).text(), /^step,train_loss/);
});

test('a job pauses, resumes and is cancelled', async () => {
  const made = await client.fineTuning.jobs.create({
    model: 'tiny', training_file: file.id,
    method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 40, batch_size: 4 } } },
  });
  const now = () => client.fineTuning.jobs.retrieve(made.id);
  await until(now, (j) => j.status === 'running');
  await client.fineTuning.jobs.pause(made.id);
  await until(now, (j) => j.status === 'paused');
  await client.fineTuning.jobs.resume(made.id);
  await client.fineTuning.jobs.cancel(made.id);
  assert.equal((await until(now, ended)).status, 'cancelled');
});

test('models are listed, retrieved and deleted', async () => {
  const ids = (await all(client.models.list())).map((m) => m.id);
  assert.ok(ids.includes('tiny') && ids.includes(job.fine_tuned_model));
  const model = await client.models.retrieve(job.fine_tuned_model);
  assert.equal(model.object, 'model');
  await assert.rejects(client.models.delete('nobody'), OpenAI.NotFoundError);
});

test('a chat is answered, whole and in pieces', async () => {
  const ask = { model: job.fine_tuned_model, messages, temperature: 0, max_completion_tokens: 40 };
  const said = await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 2 });
  assert.equal(said.choices[0].message.content, ATTUNE_ANSWER);
  assert.equal(said.choices[0].logprobs.content[0].top_logprobs.length, 2);
  let text = '', usage;
  for await (const chunk of await client.chat.completions.create({
    ...ask, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, ATTUNE_ANSWER);
  assert.equal(usage.total_tokens, said.usage.total_tokens);
});

test('a schema is kept while decoding', async () => {
  const schema = { type: 'object', additionalProperties: false, required: ['ok'], properties: { ok: { type: 'boolean' } } };
  const said = await client.chat.completions.create({
    model: 'tiny', messages, temperature: 1.5, max_tokens: 60,
    response_format: { type: 'json_schema', json_schema: { name: 'reply', strict: true, schema } },
  });
  assert.equal(typeof JSON.parse(said.choices[0].message.content).ok, 'boolean');
});

test('tools are called', async () => {
  const parameters = { type: 'object', additionalProperties: false, required: ['city'],
    properties: { city: { enum: ['Oslo', 'Rome'] } } };
  const said = await client.chat.completions.create({
    model: 'tiny-tools', messages, tool_choice: 'required', parallel_tool_calls: false, seed: 1, max_tokens: 120,
    tools: [{ type: 'function', function: { name: 'weather', strict: true, parameters } }],
  });
  assert.equal(said.choices[0].finish_reason, 'tool_calls');
  const call = said.choices[0].message.tool_calls[0];
  assert.ok(['Oslo', 'Rome'].includes(JSON.parse(call.function.arguments).city));
});

test('a text is completed', async () => {
  const said = await client.completions.create({ model: 'tiny', prompt: 'once', max_tokens: 5, n: 2, logprobs: 1 });
  assert.equal(said.object, 'text_completion');
  assert.equal(said.choices.length, 2);
});

test('a response is created, whole and as events', async () => {
  const ask = { model: job.fine_tuned_model, input: 'question 5', temperature: 0 };
  const said = await client.responses.create(ask);
  assert.equal(said.output_text, ATTUNE_ANSWER);
  assert.deepEqual([said.object, said.status, said.store], ['response', 'completed', false]);
  const types = [];
  let text = '', last;
  for await (const event of await client.responses.create({ ...ask, stream: true })) {
    assert.equal(event.sequence_number, types.length);
    types.push(event.type);
    if (event.type === 'response.output_text.delta') text += event.delta;
    last = event;
  }
  assert.deepEqual(types.slice(0, 4), ['response.created', 'response.in_progress', 'response.output_item.added',
    'response.content_part.added']);
  assert.deepEqual(types.slice(-4), ['response.output_text.done', 'response.content_part.done',
    'response.output_item.done', 'response.completed']);
  assert.equal(text, ATTUNE_ANSWER);
  assert.deepEqual(last.response.usage, { ...said.usage, input_tokens_details: last.response.usage.input_tokens_details });
  const final = await client.responses.stream(ask).finalResponse();
  assert.equal(final.output_text, ATTUNE_ANSWER);
});

test('a function of a response is called', async () => {
  const parameters = { type: 'object', additionalProperties: false, required: ['city'],
    properties: { city: { enum: ['Oslo', 'Rome'] } } };
  const ask = { model: 'tiny-tools', tools: [{ type: 'function', name: 'weather', strict: true, parameters }] };
  const said = await client.responses.create({
    ...ask, input: 'question 5', tool_choice: 'required', parallel_tool_calls: false, max_output_tokens: 120 });
  const [call] = said.output;
  assert.equal(call.type, 'function_call');
  assert.ok(['Oslo', 'Rome'].includes(JSON.parse(call.arguments).city));
  const input = [{ role: 'user', content: 'question 5' }, ...said.output,
    { type: 'function_call_output', call_id: call.call_id, output: 'rain' }];
  const after = await client.responses.create({ ...ask, input, max_output_tokens: 5 });
  assert.ok(['completed', 'incomplete'].includes(after.status));
  await refused(400, 'previous_response_id', client.responses.create({ ...ask, input, previous_response_id: 'resp_1' }));
});

test('a batch is answered row by row', async () => {
  const rows = ['tiny', job.fine_tuned_model].map((model, n) => JSON.stringify({
    custom_id: `row-${n}`, method: 'POST', url: '/v1/chat/completions', body: { model, messages, max_tokens: 8 } }));
  const input = await client.files.create({ file: await OpenAI.toFile(Buffer.from(rows.join('\n')), 'b.jsonl'), purpose: 'batch' });
  const made = await client.batches.create({
    input_file_id: input.id, endpoint: '/v1/chat/completions', completion_window: '24h' });
  const done = await until(() => client.batches.retrieve(made.id), (b) => ['completed', 'failed'].includes(b.status));
  assert.equal(done.status, 'completed', JSON.stringify(done));
  const lines = (await (await client.files.content(done.output_file_id)).text()).trim().split('\n').map(JSON.parse);
  assert.deepEqual(lines.map((l) => l.custom_id).sort(), ['row-0', 'row-1']);
  assert.ok((await all(client.batches.list({ limit: 1 }))).some((b) => b.id === made.id));
});

test('what cannot be is refused by name', async () => {
  await refused(400, 'nonsense', client.chat.completions.create({ model: 'tiny', messages, nonsense: 1 }));
  await refused(404, 'model', client.chat.completions.create({ model: 'nobody', messages }));
  await refused(400, 'training_file', client.fineTuning.jobs.create({ model: 'tiny', training_file: 'file-nobody' }));
  await assert.rejects(new OpenAI({ apiKey: 'sk-attune-nobody', maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
});
