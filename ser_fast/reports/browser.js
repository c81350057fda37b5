"use strict";
(() => {
  const STEP = 50; // rows that are shown at once
  const data = JSON.parse(document.getElementById("browser-data").textContent);
  const { classes, targets, speakers, runs } = data;
  const id = (name) => document.getElementById(name);
  const mediaOf = (item) => {
    const held = id(`media-${item}`);
    return { link: data.links[item], ...(held ? JSON.parse(held.textContent) : {}) };
  };
  const left = new Map(Object.entries(data.left).flatMap(([why, items]) => items.map((item) => [item, why])));
  const rows = data.rows.map(([name, speaker, truth, predicted, odds, error, seconds, run, item], number) => ({
    name, speaker, truth, predicted, odds, error, seconds, run, number,
    item,
    attention: data.attention[number],
    confidence: odds.length ? Math.max(...odds) : NaN,
    wrong: classes.length > 0 && truth !== predicted,
  }));

  // Every text goes through textContent or an attribute, never through HTML.
  const element = (kind, attributes = {}, ...children) => {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const drawn = (kind, attributes = {}, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  const fixed = (value, digits) => value === null || Number.isNaN(value) ? "–" : value.toFixed(digits);
  const short = (value) => String(Number(value.toPrecision(4)));
  const percent = (value) => Number.isNaN(value) ? "–" : `${fixed(100 * value, 1)} %`;

  // Columns: heading, value to sort by, text.
  const odd = (row) => row.odds.length ? row.odds[row.truth] : NaN;
  const columns = [
    ["speaker", (row) => speakers[row.speaker]],
    ...(runs.length ? [["run", (row) => runs[row.run]]] : []),
    ...(classes.length ? [
      ["true", (row) => classes[row.truth]],
      ["predicted", (row) => classes[row.predicted]],
      ["confidence", (row) => row.confidence, (row) => percent(row.confidence)],
      ["p(true)", odd, (row) => percent(odd(row))],
    ] : [
      ...targets.flatMap((name, at) => [
        [`true ${name}`, (row) => row.truth[at], (row) => short(row.truth[at])],
        [`predicted ${name}`, (row) => row.predicted[at], (row) => short(row.predicted[at])],
      ]),
      [targets.length > 1 ? "error (deviations)" : "error", (row) => row.error, (row) => short(row.error)],
    ]),
    ["seconds", (row) => row.seconds, (row) => fixed(row.seconds, 2)],
  ];
  const named = ["name", (row) => row.name];

  let order = null; // [column, direction]; without one the worst predictions come first
  let listed = [];
  let shown = 0;
  const body = id("utterances").tBodies[0];

  // The filters.
  const form = id("filters");
  const choice = (name, label, texts) => {
    const select = element("select", { name }, element("option", { value: "" }, "all"));
    texts.forEach((text, number) => select.append(element("option", { value: number }, text)));
    form.append(element("label", {}, label, select));
  };
  const input = (name, label, attributes) => {
    const check = attributes.type === "checkbox";
    const field = element("input", { name, ...attributes });
    form.append(element("label", check ? { class: "check" } : {}, ...(check ? [field, label] : [label, field])));
  };
  if (classes.length) {
    choice("truth", "true", classes);
    choice("predicted", "predicted", classes);
  }
  choice("speaker", "speaker", speakers);
  if (runs.length) choice("run", "run", runs);
  if (classes.length) {
    input("least", "confidence from (%)", { type: "number", min: 0, max: 100, step: "any" });
    input("most", "to (%)", { type: "number", min: 0, max: 100, step: "any" });
  } else {
    input("least", "error from", { type: "number", min: 0, step: "any" });
    input("most", "to", { type: "number", min: 0, step: "any" });
  }
  input("text", "name contains", { type: "search" });
  if (classes.length) input("wrong", "errors only", { type: "checkbox" });
  input("open", "show spectrograms", { type: "checkbox" });
  form.append(element("button", { type: "reset" }, "Reset"));
  const given = (name) => form.elements[name] ? form.elements[name].value : "";
  const checked = (name) => Boolean(form.elements[name] && form.elements[name].checked);

  const passes = () => {
    const tests = ["truth", "predicted", "speaker", "run"].filter((name) => given(name) !== "")
      .map((name) => { const number = Number(given(name)); return (row) => row[name] === number; });
    const [measure, unit] = classes.length ? ["confidence", 0.01] : ["error", 1];
    if (given("least") !== "") { const least = unit * given("least"); tests.push((row) => row[measure] >= least); }
    if (given("most") !== "") { const most = unit * given("most"); tests.push((row) => row[measure] <= most); }
    const text = given("text").toLowerCase();
    if (text) tests.push((row) => row.name.toLowerCase().includes(text));
    if (checked("wrong")) tests.push((row) => row.wrong);
    return (row) => tests.every((test) => test(row));
  };

  // The picture of an utterance: spectrogram, attention below it, and a line where the audio is.
  const picture = (row, media, audio) => {
    const [jpeg, begin, end, top] = media.picture;
    const [width, high, low] = [800, 180, 70];
    const height = high + (row.attention ? low : 0) + 20;
    const at = (seconds) => width * seconds / row.seconds;
    const label = `Spectrogram of ${row.name}, 0 to ${short(top / 1000)} kHz, the upper 80 dB` +
      (row.attention ? ", and the attention to its frames" : "");
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    svg.append(
      drawn("rect", { width, height: high, fill: "#000" }),
      drawn("image", { href: `data:image/jpeg;base64,${jpeg}`, x: at(begin), width: at(end) - at(begin), height: high,
                       preserveAspectRatio: "none" }),
      drawn("text", { x: 4, y: 14, fill: "#fff" }, `${short(top / 1000)} kHz`),
      drawn("text", { x: 0, y: height - 4, fill: "#626a74" }, "0 s"),
      drawn("text", { x: width, y: height - 4, fill: "#626a74", "text-anchor": "end" }, `${fixed(row.seconds, 2)} s`),
    );
    if (row.attention) {
      const [levels, first, last, peak] = row.attention;
      const bytes = Array.from(atob(levels), (letter) => letter.charCodeAt(0));
      const [floor, step] = [high + low, (at(last) - at(first)) / bytes.length];
      const steps = bytes.map((byte) => `V${(floor - (low - 6) * byte / 255).toFixed(1)}h${step.toFixed(3)}`).join("");
      svg.append(
        drawn("path", { d: `M${at(first).toFixed(1)} ${floor}${steps}V${floor}Z`, fill: "#2563a8", "fill-opacity": 0.85 }),
        drawn("text", { x: width / 2, y: height - 4, fill: "#626a74", "text-anchor": "middle" },
          `attention to each frame, up to ${short(100 * peak)} %`),
      );
    }
    if (audio) {
      const line = drawn("line", { y1: 0, y2: height - 20, stroke: "#3ad0ff", "stroke-width": 1.5, visibility: "hidden" });
      const start = Number((audio.src.match(/#t=([\d.]+)/) || [0, 0])[1]); // an utterance within a longer file
      audio.addEventListener("timeupdate", () => {
        line.setAttribute("x1", at(audio.currentTime - start));
        line.setAttribute("x2", at(audio.currentTime - start));
        line.setAttribute("visibility", "visible");
      });
      svg.append(line);
      svg.addEventListener("click", (event) => {
        const box = svg.getBoundingClientRect();
        audio.currentTime = start + row.seconds * (event.clientX - box.left) / box.width;
        audio.play();
      });
    }
    return svg;
  };

  const player = (row, media) => {
    const { audio, link } = media;
    if (!audio && !link) return null;
    const source = audio ? `data:${audio[1]};base64,${audio[0]}` : link;
    const made = element("audio", { controls: "", preload: "none", src: source, "aria-label": `audio of ${row.name}` });
    made.addEventListener("error", () => made.replaceWith(audio ? "cannot be played here" : `cannot be played: ${link}`));
    made.addEventListener("play", () => {
      for (const other of body.querySelectorAll("audio")) if (other !== made) other.pause();
    });
    return made;
  };

  const detail = (row, media, audio) => {
    const cell = element("td", { colspan: columns.length + 2 });
    if (row.odds.length) {
      const list = element("ul", { class: "odds", "aria-label": "probabilities of the classes" });
      row.odds.forEach((value, number) => list.append(
        element("li", {}, `${classes[number]} ${percent(value)}`, element("meter", { value, "aria-hidden": "true" })),
      ));
      cell.append(list);
    }
    if (media.picture) cell.append(picture(row, media, audio));
    else {
      const why = media.failure || left.get(row.item) || "The corpus has another utterance in its place.";
      cell.append(element("p", { class: "note" }, why));
    }
    return element("tr", { class: "detail" }, cell);
  };

  const line = (row) => {
    const media = mediaOf(row.item);
    const audio = player(row, media);
    const button = element("button", { type: "button", class: "name", "aria-expanded": "false" }, row.name);
    const made = element("tr", {}, element("td", {}, button));
    for (const [heading, value, text] of columns) {
      const wrong = heading === "predicted" && row.wrong ? { class: "wrong" } : {};
      made.append(element("td", wrong, String((text || value)(row))));
    }
    made.append(element("td", {}, audio || "–"));
    let below = null;
    button.addEventListener("click", () => {
      if (below) { below.remove(); below = null; } else { below = detail(row, media, audio); made.after(below); }
      button.setAttribute("aria-expanded", String(below !== null));
    });
    return [made, button];
  };

  const more = () => {
    for (const row of listed.slice(shown, shown + STEP)) {
      const [made, button] = line(row);
      body.append(made);
      if (checked("open")) button.click();
    }
    shown = Math.min(shown + STEP, listed.length);
    id("more").hidden = shown === listed.length;
    id("count").textContent = `${listed.length} of ${rows.length} predictions` +
      (shown < listed.length ? `, the first ${shown} shown` : "");
  };

  const collator = new Intl.Collator(undefined, { numeric: true }); // localeCompare makes one for each comparison
  const before = (a, b) => {
    if (typeof a === "string") return collator.compare(a, b);
    const [none, other] = [a, b].map((value) => value === null || Number.isNaN(value));
    return none || other ? none - other : a - b;
  };
  let waiting = 0; // timer of an update
  const update = () => {
    clearTimeout(waiting);
    listed = rows.filter(passes());
    if (order) {
      const [[, value], direction] = order;
      listed.sort((a, b) => direction * before(value(a), value(b)) || a.number - b.number);
    }
    for (const button of document.querySelectorAll("#confusion button")) {
      const pressed = given("truth") === button.dataset.true && given("predicted") === button.dataset.predicted;
      button.setAttribute("aria-pressed", String(pressed));
    }
    body.replaceChildren();
    shown = 0;
    more();
  };

  // The headings, which sort.
  const head = id("utterances").tHead.insertRow();
  for (const column of [named, ...columns]) {
    const button = element("button", { type: "button" }, column[0]);
    const cell = element("th", { scope: "col" }, button);
    button.addEventListener("click", () => {
      const direction = order && order[0] === column ? -order[1] : 1;
      order = [column, direction];
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      update();
    });
    head.append(cell);
  }
  head.append(element("th", { scope: "col" }, "audio"));

  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    if (["search", "number"].includes(event.target.type)) waiting = setTimeout(update, 150); // until typing pauses
    else update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    order = null;
    for (const cell of head.cells) cell.removeAttribute("aria-sort");
    setTimeout(update); // after the fields are reset
  });
  id("more").addEventListener("click", more);
  for (const button of document.querySelectorAll("#confusion button")) {
    button.addEventListener("click", () => {
      const again = button.getAttribute("aria-pressed") === "true";
      form.elements.truth.value = again ? "" : button.dataset.true;
      form.elements.predicted.value = again ? "" : button.dataset.predicted;
      update();
      id("count").scrollIntoView({ block: "nearest" });
    });
  }
  update();
})();
