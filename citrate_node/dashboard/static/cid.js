// Content identifiers: the 36 bytes that the contract holds (CIDv1, raw or dag-pb, sha2-256) and their text.

const ALPHABET = "abcdefghijklmnopqrstuvwxyz234567";

export const CID_BYTES = 36;

export function cidText(bytes) {
  let text = "b";
  let bits = 0;
  let value = 0;
  for (const byte of bytes) {
    value = ((value << 8) | byte) & 0xfff;
    bits += 8;
    for (; bits >= 5; bits -= 5) text += ALPHABET[(value >> (bits - 5)) & 31];
  }
  return bits ? text + ALPHABET[(value << (5 - bits)) & 31] : text;
}

// Throws an Error that says what is wrong. Only the one spelling that cidText writes is taken.
export function cidBytes(text) {
  if (!/^b[a-z2-7]+$/.test(text)) throw new Error("a CID here begins with b and has the letters a–z and 2–7");
  const found = [];
  let bits = 0;
  let value = 0;
  for (const letter of text.slice(1)) {
    value = ((value << 5) | ALPHABET.indexOf(letter)) & 0xfff;
    bits += 5;
    if (bits >= 8) found.push((value >> (bits -= 8)) & 0xff);
  }
  const bytes = Uint8Array.from(found);
  if (bytes.length !== CID_BYTES || cidText(bytes) !== text) throw new Error("the CID is too short, too long or mistyped");
  const [version, codec, hash, length] = bytes;
  if (version !== 1 || (codec !== 0x55 && codec !== 0x70) || hash !== 0x12 || length !== 32) {
    throw new Error("the contract takes CIDv1 with sha2-256, raw or dag-pb");
  }
  return bytes;
}

// What names stored weights in a transaction: the CID, and the size as 8 bytes where it is known.
export function cidArgument(text, sizeBytes) {
  const cid = cidBytes(text);
  if (!sizeBytes) return cid;
  const argument = new Uint8Array(CID_BYTES + 8);
  argument.set(cid);
  new DataView(argument.buffer).setBigUint64(CID_BYTES, BigInt(sizeBytes));
  return argument;
}

// The CID of a version row, from its digest (0x and 64 hex digits) and codec.
export function rowCid(row) {
  const digest = row.weightsHash.slice(2).match(/../g).map((pair) => parseInt(pair, 16));
  return cidText([1, Number(row.codec), 0x12, 0x20, ...digest]);
}
