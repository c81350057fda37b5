"use strict";
(async () => {
  const place = document.getElementById("curves");
  const panels = JSON.parse(document.getElementById("curves-data").textContent);
  const pieces = Array.from(document.querySelectorAll(".curves-library"), (piece) => piece.textContent);
  const packed = Uint8Array.from(atob(pieces.join("")), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(unpacked).text();
  document.head.append(library);
  const names = [...new Set(panels[0].lines.map((line) => line.name))];
  const colours = ["#2563a8", "#d9741a", "#8c8c8c", "#2f8f5b", "#a8324a", "#6b4fa0", "#8a5a2b", "#c0569c", "#7f8f1f", "#2a9bb0"];
  const traces = panels.flatMap((panel, number) => panel.lines.map((line) => ({
    x: line.epochs,
    y: line.values,
    name: line.name + (line.dotted ? ", validation" : ""),
    legendgroup: line.name,
    showlegend: number === 0 && !line.dotted,
    mode: line.epochs.length > 1 ? "lines" : "markers",
    line: { color: colours[names.indexOf(line.name) % colours.length], dash: line.dotted ? "dot" : "solid" },
    marker: { color: colours[names.indexOf(line.name) % colours.length] },
    xaxis: number ? "x2" : "x",
    yaxis: number ? "y2" : "y",
  })));
  const range = (panel) => panel.low === null && panel.top === null ? { rangemode: "normal" }
    : { range: [panel.low, panel.top] };
  const axis = (panel, more) => ({ title: { text: panel.label }, ...range(panel), gridcolor: "#e4e6ea", ...more });
  const last = Math.max(...panels[0].lines.flatMap((line) => line.epochs));
  const epochs = { title: { text: "epoch" }, tickformat: "d", ...(last < 12 ? { dtick: 1 } : {}) };
  const rows = Math.ceil(names.length / 4);
  await Plotly.newPlot(place, traces, {
    grid: { rows: 1, columns: 2, pattern: "independent" },
    xaxis: epochs,
    xaxis2: epochs,
    yaxis: axis(panels[0]),
    yaxis2: axis(panels[1]),
    height: 340 + 22 * rows,
    margin: { t: 20, r: 20, l: 60, b: 60 + 22 * rows },
    hovermode: names.length > 6 ? "closest" : "x unified",
    hoverlabel: { namelength: -1 },
    legend: { orientation: "h", y: -0.25 },
  }, { responsive: true, displayModeBar: false });
  const still = document.querySelector('img[alt="loss"]');
  if (still) still.closest("figure").hidden = true;
})().catch((error) => {
  document.getElementById("curves").textContent = `No learning curves: ${error.message}`;
});
