// Numbers and times for people.

export const STATES = {
  validating_files: "checking files",
  queued: "queued",
  running: "running",
  paused: "paused",
  succeeded: "succeeded",
  failed: "failed",
  cancelled: "cancelled",
};
export const isFinal = (state) => ["succeeded", "failed", "cancelled"].includes(state);

export const METHODS = { sft: "supervised", dpo: "dpo", dss: "dss", distill: "distill", rlhf: "rlhf" };

const whole = new Intl.NumberFormat("en");
export const count = (number) => whole.format(number);
export const many = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

export function value(number) {
  if (typeof number !== "number") return String(number);
  if (number === 0) return "0";
  if (Math.abs(number) < 1e-3 || Math.abs(number) >= 1e6) return number.toExponential(2);
  return String(Number(number.toPrecision(4)));
}

export function size(bytes) {
  for (const [unit, of] of [["GB", 2 ** 30], ["MB", 2 ** 20], ["kB", 2 ** 10]]) {
    if (bytes >= of) return `${(bytes / of).toFixed(1)} ${unit}`;
  }
  return `${bytes} bytes`;
}

export function short(number) {
  for (const [unit, of] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (number >= of) return `${Number((number / of).toPrecision(3))} ${unit}`;
  }
  return String(Math.round(number));
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600), minutes = Math.round((seconds % 3600) / 60);
  if (hours < 24) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return many(Math.round(hours / 24), "day");
}

export function hours(number) {
  if (number === 0) return "0 h";
  if (number < 1 / 60) return `${Math.max(1, Math.round(number * 3600))} s`;
  if (number < 1) return `${Math.round(number * 60)} min`;
  return `${Number(number.toPrecision(3))} h`;
}

export function age(at) {
  const seconds = Date.now() / 1000 - at;
  if (seconds < 60) return "just now";
  return `${seconds < 3600 ? duration(seconds) : seconds < 86400 ? `${Math.floor(seconds / 3600)} h` : duration(seconds)} ago`;
}

export const moment = (at) =>
  new Date(1000 * at).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
export const clock = (at) => new Date(1000 * at).toLocaleTimeString("en-GB");

const NAMES = { learning_rate_multiplier: "rate ×", adapter_size: "rank", batch_size: "batch" };
export const lastPart = (key) => key.slice(key.lastIndexOf(".") + 1);
export const shortKey = (key) => NAMES[lastPart(key)] ?? lastPart(key);
export const point = (values) =>
  Object.entries(values).map(([key, of]) => `${shortKey(key)} ${value(of)}`.replace("× ", "×")).join(", ");
export const shortTrial = (id) => (id.includes("_") ? `trial ${Number(id.split("_").pop())}` : id || "the run");
