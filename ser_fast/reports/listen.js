"use strict";
(async () => {
  const SECONDS = 30; // of the live view
  const COLOURS = ["#2563a8", "#d9741a", "#2f8f4e", "#a8324a", "#7b4fb5", "#8a6a1f", "#1c9aa8", "#c2559d", "#6b7280"];
  const id = (name) => document.getElementById(name);
  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const say = (place, text, error = false) => {
    place.textContent = text;
    place.classList.toggle("error", error);
  };
  const model = await (await fetch("model")).json();
  const colourOf = (number) => COLOURS[number] || `hsl(${(number * 137) % 360} 55% 45%)`;
  const drawn = (kind, attributes = {}, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text; // names are never HTML
    return made;
  };
  id("about").textContent = model.about;

  // Values of a regression have no range of their own: it grows with what was seen.
  const range = model.classes ? [0, 1] : [0, 0];
  const share = (value) => (value - range[0]) / (range[1] - range[0] || 1);
  const shown = (value) => model.classes ? `${(100 * value).toFixed(1)} %` : String(Number(value.toPrecision(4)));

  const bars = (place) => {
    const rows = model.names.map((name, number) => {
      const [label, rail, value] = [0, 1, 2].map(() => document.createElement("span"));
      const bar = rail.appendChild(document.createElement("div"));
      label.textContent = name;
      [rail.className, bar.className, value.className] = ["rail", "bar", "value"];
      bar.style.background = colourOf(number);
      place.append(label, rail, value);
      return { label, bar, value };
    });
    return (values) => rows.forEach(({ label, bar, value }, number) => {
      const known = values !== null;
      bar.style.width = known ? `${100 * share(values[number])}%` : "0";
      value.textContent = known ? shown(values[number]) : "–";
      label.className = known && model.classes && values[number] === Math.max(...values) ? "first" : "";
    });
  };
  const [fileBars, liveBars] = [bars(id("file-bars")), bars(id("live-bars"))];
  const widen = (values) => {
    if (!model.classes && values) [range[0], range[1]] = [Math.min(range[0], ...values), Math.max(range[1], ...values)];
  };
  const reasons = (flags) => flags.map((flag) => `${flag}: ${model.flags[flag]}`).join("; ");

  // The picture of a file: the spectrogram, the attention over it, and a line where the audio is.
  const picture = (found) => {
    const [[jpeg, begin, end, top], width, height] = [found.picture, 900, 220];
    const at = (seconds) => width * seconds / found.seconds;
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height + 18}`, role: "img",
                               "aria-label": "Spectrogram, and the attention of the model over it" });
    svg.append(
      drawn("rect", { width, height, fill: "#000" }),
      drawn("image", { href: `data:image/jpeg;base64,${jpeg}`, x: at(begin), width: at(end) - at(begin), height,
                       preserveAspectRatio: "none" }),
    );
    if (found.attention) {
      const [levels, first, last, peak] = found.attention;
      const bytes = bytesOf(levels);
      const step = (at(last) - at(first)) / bytes.length;
      const steps = Array.from(bytes, (byte) => `V${(height - 0.8 * height * byte / 255).toFixed(1)}h${step.toFixed(3)}`);
      svg.append(
        drawn("path", { class: "attention", d: `M${at(first).toFixed(1)} ${height}${steps.join("")}V${height}`,
                        fill: "#3ad0ff", "fill-opacity": 0.25, stroke: "#3ad0ff", "stroke-width": 1.5 }),
        drawn("text", { x: width / 2, y: height + 14, fill: "#626a74", "text-anchor": "middle" },
          `blue: attention of the model, up to ${(100 * peak).toPrecision(3)} % for one of its frames`),
      );
    }
    const line = drawn("line", { y1: 0, y2: height, stroke: "#fff", visibility: "hidden" });
    svg.append(
      drawn("text", { x: 4, y: 14, fill: "#fff" }, `${Number((top / 1000).toPrecision(3))} kHz`),
      drawn("text", { x: 0, y: height + 14, fill: "#626a74" }, "0 s"),
      drawn("text", { x: width, y: height + 14, fill: "#626a74", "text-anchor": "end" }, `${found.seconds.toFixed(2)} s`),
      line,
    );
    id("player").ontimeupdate = () => {
      for (const end of ["x1", "x2"]) line.setAttribute(end, at(id("player").currentTime));
      line.setAttribute("visibility", "visible");
    };
    return svg;
  };

  const predict = async (file) => {
    id("file-result").hidden = true;
    if (file.size > model.size) return say(id("file-status"), `The file has more than ${model.size / 1e6} MB.`, true);
    say(id("file-status"), "predicting …");
    let answer;
    try {
      const response = await fetch("file", { method: "POST", body: file });
      if (!response.ok) return say(id("file-status"), await response.text(), true);
      answer = await response.json();
    } catch (error) {
      return say(id("file-status"), `No answer: ${error.message}. Is ser-fast still running?`, true);
    }
    id("name").textContent = file.name;
    URL.revokeObjectURL(id("player").src);
    id("player").src = URL.createObjectURL(file);
    widen(answer.values);
    fileBars(answer.values);
    id("file-picture").replaceChildren(...(answer.picture ? [picture(answer)] : []));
    say(id("file-status"), reasons(answer.flags));
    id("file-result").hidden = false;
  };
  id("file").addEventListener("change", () => id("file").files.length && predict(id("file").files[0]));
  for (const [event, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    id("drop").addEventListener(event, (dropped) => {
      dropped.preventDefault();
      id("drop").classList.toggle("over", over);
      if (event === "drop" && dropped.dataTransfer.files.length) predict(dropped.dataTransfer.files[0]);
    });
  }

  // The live view: a column of the spectrogram for each frame, the newest at the right edge.
  const [spectrum, track, overlay] = ["spectrum", "track", "attention"].map((name) => id(name).getContext("2d"));
  const palette = bytesOf(model.colours);
  [spectrum.canvas.width, spectrum.canvas.height] = [Math.round(SECONDS / model.hop), model.rows];
  id("caption").textContent = `The last ${SECONDS} s: the ${model.classes ? "probabilities" : "values"} of the last ` +
    `${model.window} s at each time, and the spectrogram with the model's attention to these last ${model.window} s.`;
  const addFrames = (levels) => {
    const [columns, width] = [levels.length / model.rows, spectrum.canvas.width];
    if (!columns) return;
    const image = spectrum.createImageData(columns, model.rows);
    for (let column = 0; column < columns; column++) {
      for (let row = 0; row < model.rows; row++) {
        const [from, to] = [3 * levels[column * model.rows + row], 4 * (row * columns + column)];
        image.data.set([palette[from], palette[from + 1], palette[from + 2], 255], to);
      }
    }
    spectrum.drawImage(spectrum.canvas, -columns, 0);
    spectrum.putImageData(image, width - columns, 0);
  };
  const drawAttention = (found) => {
    const { width, height } = overlay.canvas;
    overlay.clearRect(0, 0, width, height);
    if (!found.attention) return;
    const [levels, first, last] = found.attention;
    const bytes = bytesOf(levels);
    const at = (seconds) => width * (1 - (found.seconds - seconds) / SECONDS);
    overlay.beginPath();
    overlay.moveTo(at(first), height);
    bytes.forEach((byte, number) => {
      const y = height * (1 - 0.8 * byte / 255);
      overlay.lineTo(at(first + (last - first) * number / bytes.length), y);
      overlay.lineTo(at(first + (last - first) * (number + 1) / bytes.length), y);
    });
    overlay.lineTo(at(last), height);
    [overlay.fillStyle, overlay.strokeStyle, overlay.lineWidth] = ["#3ad0ff40", "#3ad0ff", 2];
    overlay.fill();
    overlay.stroke();
  };
  const drawTrack = (points, now) => {
    const { width, height } = track.canvas;
    track.clearRect(0, 0, width, height);
    track.lineWidth = 3;
    model.names.forEach((_, number) => {
      track.strokeStyle = colourOf(number);
      track.beginPath();
      let pen = false; // a gap where nothing was predicted
      for (const { time, values } of points) {
        const [x, y] = [width * (1 - (now - time) / SECONDS), values && height - 4 - (height - 8) * share(values[number])];
        if (values) track[pen ? "lineTo" : "moveTo"](x, y);
        pen = values !== null;
      }
      track.stroke();
    });
    [track.font, track.fillStyle] = ["19px system-ui, sans-serif", "#626a74"];
    track.fillText(shown(range[1]), 4, 20);
    track.fillText(shown(range[0]), 4, height - 6);
  };

  let stop = null;
  const listen = async () => {
    const media = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
    const context = new AudioContext({ latencyHint: "interactive" });
    const address = new URL(`live?rate=${context.sampleRate}`, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address);
    stop = (reason = "", error = false) => {
      stop = null;
      media.getTracks().forEach((each) => each.stop());
      context.close();
      socket.close();
      id("start").textContent = "Start";
      say(id("live-status"), reason, error);
    };
    const ended = stop;
    await context.audioWorklet.addModule("microphone.js");
    const microphone = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
    context.createMediaStreamSource(media).connect(microphone);

    const sent = []; // count of samples after each chunk that was sent, and the time
    const points = [];
    let [count, worst] = [0, 0];
    microphone.port.onmessage = ({ data }) => {
      if (socket.readyState !== WebSocket.OPEN) return;
      count += data.byteLength / 4;
      sent.push([count, performance.now()]);
      socket.send(data);
    };
    socket.onmessage = ({ data }) => {
      const found = JSON.parse(data);
      while (sent.length > 1 && sent[0][0] < found.samples) sent.shift();
      const now = performance.now();
      const delay = now - sent[0][1] + 1e3 * (sent[0][0] - found.samples) / context.sampleRate;
      const time = found.samples / context.sampleRate;
      points.push({ time, values: found.values, now, delay });
      while (points[0].time < time - SECONDS) points.shift();
      worst = Math.max(...points.filter((point) => point.now > now - 5000).map((point) => point.delay));
      widen(found.values);
      liveBars(found.values);
      drawTrack(points, time);
      addFrames(bytesOf(found.frames));
      drawAttention(found);
      say(id("live-status"), reasons(found.flags));
      id("delay").textContent = `delay from the sound's arrival to this view ${delay.toFixed(0)} ms, at most ` +
        `${worst.toFixed(0)} ms in the last 5 s; the model's part ${found.work.toFixed(0)} ms`;
      Object.assign(id("live").dataset, { updates: Number(id("live").dataset.updates || 0) + 1, delay: delay.toFixed(1) });
    };
    socket.onclose = ({ reason }) => stop === ended && stop(reason || "The connection ended.", true);
    id("live").hidden = false;
    id("start").textContent = "Stop";
    say(id("live-status"), "listening …");
  };
  id("start").addEventListener("click", async () => {
    if (stop) return stop();
    if (!navigator.mediaDevices) {
      return say(id("live-status"), "The browser gives the microphone to https and to localhost only.", true);
    }
    try {
      await listen();
    } catch (error) {
      if (stop) stop();
      say(id("live-status"), `No microphone: ${error.message}`, true);
    }
  });
})();
