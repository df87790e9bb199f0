// The microphone as WAV: 16 kHz, 16 bit, mono.

const RATE = 16000;

export class Recorder {
  async start() {
    if (!navigator.mediaDevices) throw new Error("browsers give the microphone to pages on localhost or https only");
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("worklet.js");
    this.pieces = [];
    this.node = new AudioWorkletNode(this.context, "recorder");
    this.node.port.onmessage = ({ data }) => this.pieces.push(data);
    this.context.createMediaStreamSource(this.stream).connect(this.node);
  }

  // A Blob of what was said, and its seconds.
  async stop() {
    this.stream.getTracks().forEach((track) => track.stop());
    const length = this.pieces.reduce((sum, piece) => sum + piece.length, 0);
    const samples = new Float32Array(length);
    let at = 0;
    for (const piece of this.pieces) { samples.set(piece, at); at += piece.length; }
    const rate = this.context.sampleRate;
    await this.context.close();
    return { blob: wav(await resampled(samples, rate)), seconds: length / rate };
  }
}

async function resampled(samples, rate) {
  if (!samples.length || rate === RATE) return samples;
  const offline = new OfflineAudioContext(1, Math.ceil(samples.length * RATE / rate), RATE);
  const buffer = offline.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = offline.createBufferSource();
  source.buffer = buffer;
  source.connect(offline.destination);
  source.start();
  return (await offline.startRendering()).getChannelData(0);
}

export function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + samples.length * 2));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + samples.length * 2, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, RATE * 2, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, samples.length * 2, true);
  samples.forEach((sample, i) => view.setInt16(44 + i * 2, Math.max(-1, Math.min(1, sample)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}
