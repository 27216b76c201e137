// The two formats that a client writes and reads itself: an adapter's file, and a CID as text.

const MODULE = "model.layers.0.self_attn.q_proj";
const WIDTH = 128; // of that module in the embedded base model

// A LoRA adapter of rank 1 in the network's spelling of safetensors: sorted names, compact header padded to 8
// bytes, float32 values that are multiples of 2^-24 (a zero is never minus zero).
export function adapterFile(baseModelId, step) {
  const size = 4 * WIDTH;
  const entry = (shape, place) => ({ dtype: "F32", shape, data_offsets: [place * size, (place + 1) * size] });
  const header = JSON.stringify({
    __metadata__: {
      alpha: "2",
      base_model_id: baseModelId.slice(2),
      format: "pt",
      rank: "1",
      targets: MODULE,
    },
    [`base_model.model.${MODULE}.lora_A.weight`]: entry([1, WIDTH], 0),
    [`base_model.model.${MODULE}.lora_B.weight`]: entry([WIDTH, 1], 1),
  });
  const text = new TextEncoder().encode(header.padEnd(Math.ceil(header.length / 8) * 8));
  const file = new Uint8Array(8 + text.length + 2 * size);
  const view = new DataView(file.buffer);
  view.setBigUint64(0, BigInt(text.length), true);
  file.set(text, 8);
  for (let i = 0; i < 2 * WIDTH; i++) {
    view.setFloat32(8 + text.length + 4 * i, ((i * step) % 17) / 1024, true);
  }
  return file;
}

// The binary CID of the contract as gateways and IPFS tools write it: base32 in lower case, marked with a b.
export function cidText(cid) {
  const alphabet = "abcdefghijklmnopqrstuvwxyz234567";
  let text = "b";
  let bits = 0;
  let value = 0;
  for (const byte of cid) {
    value = ((value << 8) | byte) & 0xfff;
    bits += 8;
    for (; bits >= 5; bits -= 5) text += alphabet[(value >> (bits - 5)) & 31];
  }
  return bits ? text + alphabet[(value << (5 - bits)) & 31] : text;
}
