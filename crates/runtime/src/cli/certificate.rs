//! `--certificate FILE` of commands that erase, at the mediator and remotely alike: what
//! `mediator certificate verify` takes. Made before anything is erased, since the certificate may
//! be told once only.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::CliError;
use crate::{datadir::Part, output::Output};

// Where the certificate goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[expect(missing_docs, reason = "clap would show it as the command's description")]
pub struct CertificateArg {
    /// Write the certificate of destruction to this file, as certificate verify takes it; must not
    /// exist
    #[arg(long = "certificate", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// The file in the making.
#[derive(Debug)]
pub struct CertificateFile(Option<(Part, PathBuf)>);

impl CertificateArg {
    /// Before anything is erased: whoever finds out afterwards that the file cannot be written has
    /// no certificate.
    pub fn begin(&self) -> Result<CertificateFile, CliError> {
        let Some(path) = &self.file else { return Ok(CertificateFile(None)) };
        let failed = |error: &dyn std::fmt::Display| {
            let text = format!("cannot write {}: {error}", path.display());
            CliError::failed("output_failed", text)
                .hint("nothing was erased; give the path of a file that does not exist yet")
        };
        if path.symlink_metadata().is_ok() {
            return Err(failed(&"it exists"));
        }
        let part = Part::create(path).map_err(|error| failed(&error))?;
        Ok(CertificateFile(Some((part, path.clone()))))
    }
}

impl CertificateFile {
    /// Keeps the certificate of an answer and tells it: with `--json` the whole answer, else where
    /// the certificate is, or itself.
    pub fn tell(self, output: Output, answer: &Value) -> Result<(), CliError> {
        let certificate = answer.get("certificate").filter(|one| !one.is_null());
        let certificate = certificate.ok_or_else(|| {
            CliError::failed("output_failed", "the answer has no certificate")
                .hint("see certificate list")
        })?;
        let kept = self.0.map(|(mut part, path)| {
            let written = part.write(format!("{certificate}\n").as_bytes());
            (written.and_then(|()| part.finish()), path)
        });
        output.emit(answer)?;
        match kept {
            None => output.human(certificate),
            Some((Ok(()), path)) => {
                output.human(format_args!("certificate written to {}", path.display()))
            }
            // It may not come again.
            Some((Err(error), path)) => {
                output.human(certificate)?;
                let text = format!("cannot write {}: {error}", path.display());
                Err(CliError::failed("output_failed", text)
                    .hint("it was erased; the certificate is on stdout, and in certificate list"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_certificate_alone_is_kept_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("erased.json");
        let arg = CertificateArg { file: Some(path.clone()) };
        let file = arg.begin().unwrap();
        let answer = json!({"kind": "client", "certificate": {"destruction": {"v": 1}}});
        file.tell(Output::new(true), &answer).unwrap();
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, "{\"destruction\":{\"v\":1}}\n");
        assert_eq!(arg.begin().unwrap_err().code, "output_failed");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), kept);
        // Of what was not erased after all nothing is left.
        let other = CertificateArg { file: Some(folder.path().join("other.json")) };
        drop(other.begin().unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
