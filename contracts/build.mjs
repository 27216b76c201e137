// Compiles AdapterFactory and writes the artifact that genesis, clients and tests read.
//
//   npm run build    compile and write contracts/artifacts/ and the copy inside the Python package
//   npm run check    compile and compare with what is committed; exit 1 where they differ
//
// A predeploy is bare runtime code, so the build refuses immutables, a constructor, and code over the limit.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const solc = require("solc");
const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const outputs = ["contracts/artifacts/AdapterFactory.json", "citrate_node/chain/artifacts/AdapterFactory.json"];
const CODE_SIZE_MAX = 24576; // EIP-170

const sourceNames = ["IAdapterFactory.sol", "Certificates.sol", "AdapterFactoryStorage.sol", "AdapterFactoryViews.sol", "AdapterFactory.sol"];
const settings = {
  evmVersion: "cancun", // what the chains we know run; newer ones accept it
  viaIR: true,
  optimizer: { enabled: true, runs: 10000 },
  // no metadata hash: the code must not change when only a comment does
  metadata: { bytecodeHash: "none", appendCBOR: false },
};

function compile() {
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(
      sourceNames.map((name) => [`contracts/src/${name}`, { content: readFileSync(join(root, "contracts/src", name), "utf8") }]),
    ),
    settings: {
      ...settings,
      outputSelection: { "*": { "*": ["abi", "evm.deployedBytecode", "evm.bytecode.object", "evm.methodIdentifiers", "storageLayout", "devdoc", "userdoc"] } },
    },
  };
  const findImport = (path) => {
    try {
      return { contents: readFileSync(require.resolve(path), "utf8") };
    } catch (error) {
      return { error: `${path}: ${error.message}; run \`npm ci\`` };
    }
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImport }));
  const messages = output.errors ?? [];
  for (const message of messages) console.error(message.formattedMessage);
  // a warning is a fault here as well: the contract cannot be changed once it is in a genesis
  if (messages.length > 0) throw new Error(`solc gave ${messages.length} messages`);
  return {
    manual: output.contracts["contracts/src/IAdapterFactory.sol"].IAdapterFactory,
    contract: output.contracts["contracts/src/AdapterFactory.sol"].AdapterFactory,
  };
}

function artifactOf({ manual, contract }) {
  const deployed = contract.evm.deployedBytecode;
  const size = deployed.object.length / 2;
  if (Object.keys(deployed.immutableReferences ?? {}).length > 0) throw new Error("a predeploy cannot have immutables");
  if (contract.abi.some((entry) => entry.type === "constructor")) throw new Error("a predeploy cannot have a constructor");
  if (size > CODE_SIZE_MAX) throw new Error(`runtime code is ${size} bytes, the limit is ${CODE_SIZE_MAX}`);
  // the interface is the manual: what the contract can do stands there, and nothing else
  const functions = (of) => JSON.stringify(Object.entries(of.evm.methodIdentifiers).sort());
  if (functions(manual) !== functions(contract)) throw new Error("AdapterFactory and IAdapterFactory differ in functions");
  return {
    contractName: "AdapterFactory",
    compiler: { name: "solc", version: solc.version(), settings },
    abi: manual.abi,
    methodIdentifiers: contract.evm.methodIdentifiers,
    runtimeBytecode: `0x${deployed.object}`,
    storageLayout: storageLayoutOf(contract.storageLayout),
  };
}

// solc names types by AST ids, which move with every edit of an unrelated line
function storageLayoutOf(layout) {
  const text = JSON.stringify({ storage: layout.storage, types: layout.types });
  const clean = JSON.parse(text.replace(/\)\d+_storage/g, ")_storage").replace(/"astId":\d+,/g, ""));
  return clean;
}

const artifact = artifactOf(compile());
const text = `${JSON.stringify(artifact, null, 1)}\n`;
const size = (artifact.runtimeBytecode.length - 2) / 2;
if (process.argv.includes("--check")) {
  const stale = outputs.filter((path) => {
    try {
      return readFileSync(join(root, path), "utf8") !== text;
    } catch {
      return true;
    }
  });
  if (stale.length > 0) {
    console.error(`not what the sources compile to: ${stale.join(", ")}\n  run \`npm run build\` and commit the result`);
    process.exit(1);
  }
  console.log(`artifacts match the sources (${size} bytes of runtime code)`);
} else {
  for (const path of outputs) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  console.log(`AdapterFactory: ${size} bytes of runtime code, ${artifact.compiler.version}`);
}
