"use strict";
// Sends the microphone, averaged over its channels, in chunks of about 10 ms.
registerProcessor("microphone", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.size = 128 * Math.max(1, Math.round(0.01 * sampleRate / 128));
    this.chunk = new Float32Array(this.size);
    this.at = 0;
  }
  process([channels]) {
    if (!channels.length) return true;
    for (let i = 0; i < channels[0].length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.chunk[this.at++] = sum / channels.length;
      if (this.at === this.size) {
        this.port.postMessage(this.chunk.buffer, [this.chunk.buffer]);
        this.chunk = new Float32Array(this.size);
        this.at = 0;
      }
    }
    return true;
  }
});
