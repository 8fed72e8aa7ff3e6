// Requests to the service, with the key that the user has entered for this browser tab.

const ROOT = new URL("../", import.meta.url);
const KEY = "raytune-llm-key";
const TRIES = 3;

export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.param = error.param;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);
export const address = () => new URL("v1", ROOT).href;
export const url = (path) => new URL(path.replace(/^\//, ""), ROOT).href;

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key === null ? more : { ...more, authorization: `Bearer ${key}` };
}

async function refusal(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // not of this service, as from a proxy: the status alone is known
  }
  return refused(response.status, error);
}

function refused(status, error) {
  const found = new Refused(status, error ?? { message: `the service answered with status ${status}` });
  if (status === 401) dispatchEvent(new CustomEvent("key-needed", { detail: found }));
  return found;
}

function online(isOnline) {
  dispatchEvent(new CustomEvent("connection", { detail: isOnline }));
}

export async function send(method, path, body, signal) {
  const response = await fetch(url(path), {
    method,
    signal,
    cache: "no-store",
    headers: headers(body === undefined ? {} : { "content-type": "application/json" }),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function ask(method, path, body, signal) {
  return (await send(method, path, body, signal)).json();
}

// A thing that is read again and again: `read` resolves to null while it is unchanged or can't be reached.
export function watched(path) {
  let tag = null, failures = 0;
  return async function read(signal) {
    let response;
    try {
      response = await fetch(url(path), {
        signal, cache: "no-store", headers: headers(tag === null ? {} : { "if-none-match": tag }),
      });
    } catch (error) {
      if (signal.aborted) throw error;
      failures += 1;
      if (failures >= TRIES) online(false);
      return null;
    }
    if (response.status === 502 || response.status === 503 || response.status === 504) {
      failures += 1;
      if (failures >= TRIES) online(false);
      return null;
    }
    failures = 0;
    online(true);
    if (response.status === 304) return null;
    if (!response.ok) throw await refusal(response);
    tag = response.headers.get("etag");
    return response.json();
  };
}

// fetch can't tell how far an upload is
export function upload(file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url("/v1/files"));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded / Math.max(1, event.total)));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(request.response);
      else reject(refused(request.status, request.response?.error));
    });
    request.addEventListener("error", () => reject(new Error("the upload broke off; is the service running?")));
    request.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", file, file.name);
    request.send(form);
  });
}

// A chat answer as it is written; resolves when it has ended.
export async function chat(model, prompt, onText, signal) {
  const messages = [{ role: "user", content: prompt }];
  const body = { model, messages, stream: true, temperature: 0 };
  const response = await send("POST", "/v1/chat/completions", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(500, event.error);
      const text = event.choices?.[0]?.delta?.content;
      if (text) onText(text);
    }
  }
}
