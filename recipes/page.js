/* What a page does beyond being read: plots, a filter over rows, a button that copies.
   Texts are only ever set as text. */
(() => {
  "use strict";
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const config = { displayModeBar: false, responsive: false };

  /* Values of the page's own names, as var(--ink), wherever they stand in a figure. */
  function named(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => named(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, named(item, style)])
    );
  }

  /* A name that is longer than the plot is wide goes on two lines. */
  function wrapped(text, most) {
    if (text.length <= most) return text;
    const at = text.indexOf(" ", text.length / 2 - 4);
    return at < 0 ? text : `${text.slice(0, at)}<br>${text.slice(at + 1)}`;
  }

  function draw(place, width) {
    const figure = named(charts[place.dataset.chart], getComputedStyle(root));
    const layout = { ...figure.layout, width };
    const all = layout.annotations || [];
    layout.annotations = all.filter((note) => note.name !== "wide" || width > 560);
    layout.xaxis.title.text = wrapped(layout.xaxis.title.text, width / 8);
    return Plotly.react(place, figure.data, layout, config);
  }

  const places = [...document.querySelectorAll("[data-chart]")].filter(
    (place) => charts[place.dataset.chart]
  );

  function drawAll(width) {
    for (const place of places) draw(place, width || place.clientWidth);
  }

  function start() {
    for (const place of places) {
      place.replaceChildren();
      place.classList.add("drawn");
    }
    drawAll();
    let waiting = 0;
    let last = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth === last) return; /* a phone's bars come and go */
      last = window.innerWidth;
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => drawAll());
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
  }

  let opened = [];
  window.addEventListener("beforeprint", () => {
    root.classList.add("printing"); /* light colours, on paper */
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const part of opened) part.open = true;
    drawAll(640);
  });
  window.addEventListener("afterprint", () => {
    root.classList.remove("printing");
    for (const part of opened) part.open = false;
    drawAll();
  });

  function filter() {
    const list = document.getElementById("rows");
    if (!list) return;
    const rows = [...list.children].map((row) => [row, row.textContent.toLowerCase()]);
    const search = document.getElementById("search-rows");
    const right = document.getElementById("who-is-right");
    const status = document.getElementById("shown-rows");
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of rows) {
        const fits =
          (!right.value || row.dataset.right === right.value) &&
          words.every((word) => text.includes(word));
        row.hidden = !fits;
        shown += fits;
      }
      status.textContent = `${shown} of ${rows.length} rows shown`;
    };
    search.addEventListener("input", apply);
    right.addEventListener("change", apply);
    document.getElementById("filter").hidden = false;
    apply();
  }

  function copying() {
    for (const button of document.querySelectorAll("[data-copy]")) {
      const source = document.getElementById(button.dataset.copy);
      const word = button.textContent;
      button.hidden = false;
      button.addEventListener("click", async () => {
        let done = true;
        try {
          await navigator.clipboard.writeText(source.textContent);
        } catch {
          getSelection().selectAllChildren(source); /* no clipboard here: it is marked instead */
          done = document.execCommand("copy");
        }
        button.textContent = done ? "Copied" : "Marked: copy it";
        setTimeout(() => { button.textContent = word; }, 2000);
      });
    }
  }

  root.classList.add("js");
  filter();
  copying();
  if (places.length) start();
})();
