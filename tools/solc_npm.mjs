#!/usr/bin/env node
// The npm compiler under the two options that other tools ask a solc binary for: --version and --standard-json.
// Called by tools/slither_findings.py. Imports are read from node_modules, everything else from the paths in the input.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const solc = require("solc");

if (process.argv.includes("--version")) {
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}`);
} else if (process.argv.includes("--standard-json")) {
  const input = JSON.parse(readFileSync(0, "utf8"));
  for (const source of Object.values(input.sources)) {
    if (source.urls) source.content = readFileSync(source.urls[0], "utf8");
    delete source.urls;
  }
  const read = (path) => {
    try {
      return { contents: readFileSync(path, "utf8") };
    } catch (error) {
      return { error: error.message };
    }
  };
  process.stdout.write(solc.compile(JSON.stringify(input), { import: read }));
} else {
  console.error("solc_npm knows --version and --standard-json");
  process.exit(1);
}
