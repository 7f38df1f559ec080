//! Rules for manifests and documents: who uses whom, why a dependency is there, what the README promises.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Problem;
use super::files::Files;
use super::tables::{ARCHITECTURE_LINES, EDGES, PACKAGE_SOURCE, TEST_EDGES, TESTKIT};

/// What cargo knows of the workspace.
///
/// # Errors
/// When cargo cannot read it.
pub(crate) fn metadata(root: &Path) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let output = Command::new(cargo).args(arguments).current_dir(root).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// Checks manifests and documents.
///
/// # Errors
/// When the metadata is not what cargo documents.
pub(crate) fn check(files: &Files, metadata: &Value) -> Result<Vec<Problem>> {
    let members = members(metadata)?;
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let mut problems: Vec<Problem> = members.iter().flat_map(|member| wrong_edges(member, files)).collect();
    let text = |path| files.text(path).unwrap_or_default();
    problems.extend(architecture(text(ARCHITECTURE), &names));
    problems.extend(reasons(text(MANIFEST)));
    for path in ["Cargo.lock", "fuzz/Cargo.lock"] {
        problems.extend(lock(path, text(path)));
    }
    problems.extend(promised_commands(text(README), text(CI)));
    problems.extend(families(text(REGISTRY), text(README)));
    for file in files.iter().filter(|file| file.path.ends_with("/Cargo.toml") && !file.path.starts_with("fuzz/")) {
        problems.extend(inherited(&file.path, &file.text));
    }
    Ok(problems)
}

/// A crate of ours.
struct Member {
    name: String,
    /// Its `Cargo.toml`, relative to the root.
    manifest: String,
    uses: Vec<Edge>,
}

/// One use of one of our crates by another.
#[derive(Debug, PartialEq)]
struct Edge {
    to: String,
    only_tests: bool,
}

/// Every member with its edges to other members.
fn members(metadata: &Value) -> Result<Vec<Member>> {
    let root = metadata["workspace_root"].as_str().context("cargo metadata has no workspace_root")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let edge = |dependency: &Value| {
        let ours = dependency["path"].is_string();
        let to = dependency["name"].as_str()?.to_owned();
        ours.then(|| Edge { to, only_tests: dependency["kind"] == "dev" })
    };
    let member = |package: &Value| {
        let name = package["name"].as_str().context("a package has no name")?.to_owned();
        let manifest = package["manifest_path"].as_str().context("a package has no manifest")?;
        let manifest = manifest.trim_start_matches(root).trim_start_matches(['/', '\\']).replace('\\', "/");
        let dependencies = package["dependencies"].as_array().context("a package has no dependencies")?;
        Ok(Member { name, manifest, uses: dependencies.iter().filter_map(edge).collect() })
    };
    packages.iter().map(member).collect()
}

/// Edges that the tables do not have.
fn wrong_edges(member: &Member, files: &Files) -> Vec<Problem> {
    let Member { name: package, manifest, uses } = member;
    let row = |table: &[(&str, &'static [&'static str])]| {
        table.iter().find(|(name, _)| name == package).map(|&(_, allowed)| allowed)
    };
    let Some(allowed) = row(EDGES) else {
        let message = format!("`{package}` has no row in EDGES of xtask/src/tidy/tables.rs: add one");
        return vec![Problem::new(manifest, 1, "edge", message)];
    };
    let for_tests = row(TEST_EDGES).unwrap_or_default();
    let fine = |edge: &Edge| {
        allowed.contains(&&*edge.to) || edge.only_tests && (edge.to == TESTKIT || for_tests.contains(&&*edge.to))
    };
    let problem = |edge: &Edge| {
        let message = match edge.to.as_str() {
            TESTKIT => format!("`{package}` uses {TESTKIT} outside its tests: make it a dev-dependency"),
            to => format!("`{package}` may not use `{to}`; it may use: {}", allowed.join(", ")),
        };
        let text = files.text(manifest).unwrap_or_default();
        let index = text.lines().position(|line| line.starts_with(&edge.to)).unwrap_or_default();
        Problem::new(manifest, index + 1, "edge", message)
    };
    uses.iter().filter(|edge| !fine(edge)).map(problem).collect()
}

/// The map of the house names every room and stays a map.
fn architecture(text: &str, members: &[&str]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for member in members.iter().filter(|member| !text.contains(&format!("`{member}`"))) {
        problems.push(Problem::new(ARCHITECTURE, 1, "architecture", format!("add a paragraph on `{member}`")));
    }
    let lines = text.lines().count();
    if lines > ARCHITECTURE_LINES {
        let message = format!("{lines} lines, the limit is {ARCHITECTURE_LINES}: details belong next to the code");
        problems.push(Problem::new(ARCHITECTURE, 1, "architecture", message));
    }
    problems
}

/// Every outside dependency says above itself why it is there.
fn reasons(manifest: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let (mut in_table, mut explained) = (false, false);
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            in_table = line == "[workspace.dependencies]";
        } else if in_table && line.contains('=') && !line.starts_with('#') {
            let name = line.split(['=', '.']).next().unwrap_or_default().trim();
            if !explained && !name.starts_with("ocelli-") {
                let message = format!("say in a comment line above `{name}` what it is for");
                problems.push(Problem::new(MANIFEST, index + 1, "dependency reason", message));
            }
        }
        explained = line.starts_with("# ");
    }
    problems
}

/// Members take versions from the workspace, so that each is written once.
fn inherited(path: &str, manifest: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut in_table = false;
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            in_table = line.ends_with("dependencies]");
        } else if in_table && line.contains('=') && !line.starts_with('#') && !line.contains("workspace = true") {
            let message = "write `name.workspace = true`; the version belongs into the root Cargo.toml".into();
            problems.push(Problem::new(path, index + 1, "dependency version", message));
        }
    }
    problems
}

/// Packages come from crates.io and from nowhere else.
fn lock(path: &str, text: &str) -> Vec<Problem> {
    let lines = text.lines().enumerate();
    let foreign = lines.filter(|(_, line)| line.starts_with("source = ") && !line.contains(PACKAGE_SOURCE));
    let problem = |(index, line): (usize, &str)| {
        let message = format!("{line}: packages come from crates.io only");
        Problem::new(path, index + 1, "package source", message)
    };
    foreign.map(problem).collect()
}

/// The commands in the README's first shell block are exactly those that CI runs.
fn promised_commands(readme: &str, ci: &str) -> Vec<Problem> {
    let block = readme.lines().enumerate().skip_while(|(_, line)| *line != "```sh").skip(1);
    let lines = block.take_while(|(_, line)| *line != "```");
    let commands: Vec<(usize, &str)> =
        lines.map(|(index, line)| (index, line.split(" #").next().unwrap_or_default().trim())).collect();
    let run = |command: &str| ci.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(command));
    let mut problems = Vec::new();
    if !commands.iter().any(|(_, command)| command.starts_with("cargo test")) {
        let message = "the first ```sh block does not say how to run the tests".into();
        problems.push(Problem::new(README, 1, "promised commands", message));
    }
    for (index, command) in commands.into_iter().filter(|(_, command)| command.starts_with("cargo") && !run(command)) {
        let message = format!("{CI} does not run `{command}` in exactly these words");
        problems.push(Problem::new(README, index + 1, "promised commands", message));
    }
    problems
}

/// Every family in the registry has a row in the README.
fn families(registry: &str, readme: &str) -> Vec<Problem> {
    let table = registry.lines().enumerate().skip_while(|(_, line)| *line != "families! {").skip(1);
    let mut problems = Vec::new();
    for (index, line) in table.take_while(|(_, line)| *line != "}") {
        let Some(model_type) = line.split('"').nth(1) else { continue };
        if !readme.contains(&format!("| `{model_type}` |")) {
            let message = format!("add a row for `{model_type}` to the families in {README}");
            problems.push(Problem::new(REGISTRY, index + 1, "families", message));
        }
    }
    problems
}

const MANIFEST: &str = "Cargo.toml";
const ARCHITECTURE: &str = "ARCHITECTURE.md";
const README: &str = "README.md";
const CI: &str = ".ci/run";
const REGISTRY: &str = "crates/models/src/registry.rs";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edges_of(package: &str, to: &str, only_tests: bool) -> Vec<Problem> {
        let files = Files::of(&[("crates/a/Cargo.toml", &format!("[dependencies]\n{to}.workspace = true\n"))]);
        let uses = vec![Edge { to: to.into(), only_tests }];
        wrong_edges(&Member { name: package.into(), manifest: "crates/a/Cargo.toml".into(), uses }, &files)
    }

    fn lines(problems: &[Problem]) -> Vec<usize> {
        problems.iter().map(|problem| problem.line).collect()
    }

    #[test]
    fn edges_come_from_the_metadata() {
        let metadata = json!({"workspace_root": "x", "packages": [{
            "name": "a", "manifest_path": "x/crates/a/Cargo.toml", "dependencies": [
                {"name": "b", "path": "b", "kind": null}, {"name": "t", "path": "t", "kind": "dev"},
                {"name": "serde", "kind": null}]}]});
        let found = &members(&metadata).unwrap()[0];
        assert_eq!((found.name.as_str(), found.manifest.as_str()), ("a", "crates/a/Cargo.toml"));
        let expected = [("b", false), ("t", true)].map(|(to, only_tests)| Edge { to: to.into(), only_tests });
        assert_eq!(found.uses, expected);
        assert!(members(&json!({})).is_err());
    }

    #[test]
    fn edges_point_down() {
        assert_eq!(edges_of("ocelli-engine", "ocelli-models", false), []);
        let up = &edges_of("ocelli-models", "ocelli-engine", false)[0].to_string();
        assert!(up.contains("crates/a/Cargo.toml:2: [edge] `ocelli-models` may not use `ocelli-engine`"), "{up}");
        assert_eq!(edges_of("ocelli-models", "ocelli-engine", true).len(), 1);
        assert!(edges_of("ocelli-new", "ocelli-formats", false)[0].message.contains("no row"));
    }

    #[test]
    fn testkit_is_for_tests() {
        assert_eq!(edges_of("ocelli-kernels", TESTKIT, true), []);
        assert!(edges_of("ocelli-kernels", TESTKIT, false)[0].message.contains("dev-dependency"));
    }

    #[test]
    fn the_map_names_every_room_and_is_short() {
        assert_eq!(architecture("`a` and `b`", &["a", "b"]), []);
        assert!(architecture("`ab`", &["a"])[0].message.contains("`a`"));
        assert_eq!(architecture(&"x\n".repeat(251), &[]).len(), 1);
        assert_eq!(architecture(&"x\n".repeat(250), &[]), []);
    }

    #[test]
    fn dependencies_have_a_reason() {
        let manifest = "[workspace.dependencies]\nocelli-a = { path = \"a\" }\n\n# Errors.\nb = \"1\"\nc = \"1\"\n\
                        [workspace.lints.rust]\nd = \"warn\"\n";
        assert_eq!(lines(&reasons(manifest)), [6]);
    }

    #[test]
    fn versions_are_written_once() {
        let manifest = "[package]\nname = \"a\"\n[dependencies]\nb.workspace = true\nc = \"1\"\n\
                        d = { workspace = true, optional = true }\n[dev-dependencies]\ne = { version = \"1\" }\n";
        assert_eq!(lines(&inherited("a/Cargo.toml", manifest)), [5, 8]);
    }

    #[test]
    fn packages_come_from_one_place() {
        let good = format!("[[package]]\nsource = \"{PACKAGE_SOURCE}\"\n");
        assert_eq!(lock("Cargo.lock", &good), []);
        assert_eq!(lines(&lock("Cargo.lock", &format!("{good}source = \"git+https://example.org/x\"\n"))), [3]);
    }

    #[test]
    fn ci_runs_what_the_readme_promises() {
        let readme = "# A\n```sh\ncargo run -- see   # looks\ncargo test --workspace\n```\n```sh\ncargo other\n```\n";
        let ci = "#!/bin/bash\ncargo run -- see | tee out\ncargo test --workspace\n";
        assert_eq!(promised_commands(readme, ci), []);
        assert_eq!(lines(&promised_commands(readme, "# cargo test --workspace\ncargo run -- see\n")), [4]);
        assert_eq!(lines(&promised_commands("```sh\n```\n", ci)), [1]);
    }

    #[test]
    fn families_are_in_the_readme() {
        let registry = "families! {\n    \"a\", \"A\", Model;\n    \"b\", \"B\", Model;\n}\nfn f() {\n    \"c\"\n}\n";
        assert_eq!(lines(&families(registry, "| A | `a` | yes |\n")), [3]);
        assert_eq!(families(registry, "| A | `a` | yes |\n| B | `b` | no |\n"), []);
    }
}
