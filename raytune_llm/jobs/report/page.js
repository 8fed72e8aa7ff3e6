// Draws the report's figures when they are scrolled to, in the colours of the page; copies commands; switches light and dark.
(function () {
  "use strict";
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Set();
  const isTouch = matchMedia("(pointer: coarse)").matches;

  // A figure's values with the page's colours in place of var(--name).
  function coloured(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  }

  function draw(figure, width) {
    const spec = specs[figure.dataset.figure], plot = figure.querySelector(".plot");
    const select = figure.querySelector("select"), log = figure.querySelector(".log");
    const found = coloured(spec.variants[select ? select.value : 0], getComputedStyle(root));
    if (log && log.dataset.set) found.layout.yaxis.type = log.checked ? "log" : "linear";
    else if (log) log.checked = found.layout.yaxis.type === "log";
    if (found.layout.height) plot.style.height = found.layout.height + "px";
    found.layout.dragmode = isTouch ? false : "zoom";
    if (width) found.layout.width = width;
    try {
      Plotly.react(plot, found.data, found.layout, { displayModeBar: false, responsive: true, showTips: false });
      drawn.add(figure);
    } catch (error) {
      plot.textContent = "";
      const note = plot.appendChild(document.createElement("p"));
      note.className = "failed";
      note.textContent = "This browser can't draw the figure (" + error.message + "); its numbers are in the table.";
    }
  }

  const figures = [...document.querySelectorAll("figure[data-figure]")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "500px" });
  for (const figure of figures) {
    seen.observe(figure);
    const select = figure.querySelector("select"), log = figure.querySelector(".log");
    if (select) select.addEventListener("change", () => { if (log) delete log.dataset.set; draw(figure); });
    if (log) log.addEventListener("change", () => { log.dataset.set = "1"; draw(figure); });
    figure.querySelector(".save").addEventListener("click", () => {
      if (!drawn.has(figure)) draw(figure);
      const plot = figure.querySelector(".plot");
      Plotly.toImage(plot, { format: "png", scale: 2, width: plot.offsetWidth, height: plot.offsetHeight })
        .then((address) => {
          const link = document.createElement("a");
          link.href = address;
          link.download = figure.dataset.figure + ".png";
          link.click();
          say("Saved");
        });
    });
  }

  // Light and dark: the reader's own choice for this page, else what the system prefers.
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  function recolour() {
    theme.setAttribute("aria-pressed", String(isDark()));
    for (const figure of drawn) draw(figure);
  }
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; recolour(); });
  dark.addEventListener("change", recolour);
  theme.setAttribute("aria-pressed", String(isDark()));

  // Paper is light, has every figure, and is narrower than most screens.
  const PAPER = 660;
  let before;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    for (const figure of figures) draw(figure, PAPER);
  });
  addEventListener("afterprint", () => {
    if (before === undefined) delete root.dataset.theme;
    else root.dataset.theme = before;
    for (const figure of figures) draw(figure);
  });

  function say(text) { document.getElementById("announcer").textContent = text; }

  async function copied(text) {
    if (navigator.clipboard) {
      try { await navigator.clipboard.writeText(text); return true; } catch { /* the older way is tried */ }
    }
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.className = "hidden";
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    return isDone;
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const isDone = await copied(button.parentElement.querySelector("pre").textContent);
      button.textContent = isDone ? "Copied" : "Not copied";
      say(button.textContent);
      button.focus();
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
