//! Programs in JavaScript: the compiler of TypeScript, and scripts in node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::kit::skip;

/// A folder for the files of one test. Its scripts find the packages that `tests/run` installs.
pub(crate) struct Node {
    folder: PathBuf,
}

impl Node {
    /// If node or a package is missing, reports the test as skipped and returns `None`.
    pub(crate) fn in_folder(name: &str) -> Option<Self> {
        let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/describe");
        if !skip::has("node", "--version") {
            return None;
        }
        for package in ["typescript", "ajv", "@seriousme/openapi-schema-validator"] {
            if !packages.join("node_modules").join(package).exists() {
                skip::not_installed(package);
                return None;
            }
        }
        let folder = packages.join(name);
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("package.json"), r#"{ "type": "module" }"#).unwrap();
        Some(Self { folder })
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    /// Compiles files. Returns the errors, or nothing.
    pub(crate) fn tsc(&self, arguments: &[&str]) -> String {
        let options = ["--strict", "--target", "es2022", "--module", "es2022"];
        let more = ["--lib", "es2022,dom,dom.iterable", "--moduleResolution", "bundler", "--types", ""];
        self.run_tsc(&[&options[..], &more[..], arguments].concat())
    }

    /// Compiles the project of the folder, as an editor does. Returns the errors, or nothing.
    pub(crate) fn tsc_project(&self, config: &str) -> String {
        self.run_tsc(&["--project", config])
    }

    fn run_tsc(&self, arguments: &[&str]) -> String {
        let tsc = self.folder.join("../node_modules/typescript/bin/tsc");
        let output = Command::new("node").arg(tsc).args(arguments).current_dir(&self.folder).output().unwrap();
        let errors = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), errors.is_empty(), "{}: {errors}", output.status);
        errors
    }

    /// Runs a script. Returns its output, or its errors.
    pub(crate) fn run(&self, script: &str) -> Result<String, String> {
        let mut command = Command::new("node");
        let output = command.arg(script).current_dir(&self.folder).stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}
