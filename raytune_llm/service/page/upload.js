// A place to drop a JSONL file, or to choose one, with the progress of its upload.

import { upload } from "./api.js";
import { h, say, setText } from "./dom.js";
import { size } from "./format.js";

// `onFile(file)`: the service's record of it, or null once another was chosen.
export function dropZone(id, label, note, limits, onFile, signal) {
  const input = h("input", { type: "file", id, accept: ".jsonl,.json,.csv,.tsv,.parquet,.arrow,.gz,.zst,.bz2,.xz", class: "hidden", "aria-describedby": `${id}-note` });
  const text = h("span", {}), bar = h("progress", { max: 1, "aria-label": "Upload", hidden: true });
  const problem = h("p", { class: "error", role: "alert" });
  const zone = h("div", { class: "drop" }, input,
    h("label", { for: id, class: "button" }, label), text, h("span", { class: "soft small", id: `${id}-note` }, note), bar, problem);
  let open = null;

  async function take(file) {
    open?.abort();
    open = new AbortController();
    signal.addEventListener("abort", () => open.abort());
    setText(problem, "");
    onFile(null);
    if (file.size > limits.max_file_bytes) {
      setText(text, "");
      setText(problem, `${file.name} has ${size(file.size)}; the service takes at most ${size(limits.max_file_bytes)}.`);
      return;
    }
    setText(text, `${file.name} · ${size(file.size)}`);
    bar.hidden = false;
    bar.value = 0;
    try {
      const stored = await upload(file, (part) => { bar.value = part; }, open.signal);
      say(`${file.name} is uploaded`);
      onFile(stored);
    } catch (error) {
      if (error.name !== "AbortError") setText(problem, error.message);
    }
    bar.hidden = true;
  }

  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  for (const name of ["dragenter", "dragover"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  zone.addEventListener("dragleave", (event) => zone.contains(event.relatedTarget) || zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  zone.clear = () => {
    open?.abort();
    input.value = "";
    setText(text, "");
  };
  return zone;
}
