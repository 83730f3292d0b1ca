//! Who is who in a cluster: an authority of its own, certificates, and the files by which programs find the API.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::run;

/// A certificate authority in a directory, with the key that signs service accounts.
pub(super) struct Authority {
    dir: PathBuf,
}

const DAYS: &str = "30";

fn openssl(line: &str, files: &[(&str, &Path)]) -> Result<()> {
    let words = line.split_whitespace().map(|word| {
        let file = files.iter().find(|(name, _)| *name == word);
        file.map_or_else(|| word.into(), |(_, path)| path.as_os_str().to_owned())
    });
    run("openssl", words).map(drop)
}

impl Authority {
    /// Makes one in `dir`, which is made.
    pub(super) fn new(dir: PathBuf) -> Result<Authority> {
        std::fs::create_dir_all(&dir).context("directory of certificates")?;
        let made = Authority { dir };
        let (key, certificate) = (made.key("ca"), made.certificate("ca"));
        let files = [("KEY", key.as_path()), ("CERT", certificate.as_path()), ("DAYS", Path::new(DAYS))];
        let line = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout KEY -out CERT -days DAYS \
                    -subj /CN=sheep-e2e";
        openssl(line, &files)?;
        openssl("ecparam -name prime256v1 -genkey -noout -out KEY", &[("KEY", &made.key("accounts"))])?;
        let public = [("KEY", made.key("accounts")), ("OUT", made.accounts())];
        let public: Vec<(&str, &Path)> = public.iter().map(|(name, path)| (*name, path.as_path())).collect();
        openssl("ec -in KEY -pubout -out OUT", &public)?;
        Ok(made)
    }

    /// Private key of `name`; that of service accounts is `accounts`.
    pub(super) fn key(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    /// Certificate of `name`; the authority's own is `ca`.
    pub(super) fn certificate(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.crt"))
    }

    /// Public key of service accounts.
    pub(super) fn accounts(&self) -> PathBuf {
        self.dir.join("accounts.pub")
    }

    /// Issues a certificate: `subject` like `/O=group/CN=user`, `names` like `DNS:host,IP:address`.
    pub(super) fn issue(&self, name: &str, subject: &str, names: &str) -> Result<()> {
        let (request, extensions) = (self.dir.join("request"), self.dir.join("extensions"));
        std::fs::write(&extensions, format!("subjectAltName={names}\n")).context("extensions")?;
        let (key, certificate) = (self.key(name), self.certificate(name));
        let (ca, ca_key) = (self.certificate("ca"), self.key("ca"));
        let files = [
            ("KEY", key.as_path()),
            ("CERT", certificate.as_path()),
            ("CA", ca.as_path()),
            ("CAKEY", ca_key.as_path()),
            ("REQUEST", request.as_path()),
            ("EXTENSIONS", extensions.as_path()),
            ("SUBJECT", Path::new(subject)),
            ("DAYS", Path::new(DAYS)),
        ];
        openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout KEY -out REQUEST -subj SUBJECT",
            &files,
        )?;
        let line = "x509 -req -in REQUEST -CA CA -CAkey CAKEY -CAcreateserial -out CERT -days DAYS -extfile EXTENSIONS";
        openssl(line, &files)
    }

    /// Issues a certificate to a user of the API at `server`, and writes the file that a program is given to use it.
    pub(super) fn user(&self, name: &str, subject: &str, server: &str) -> Result<PathBuf> {
        self.issue(name, subject, &format!("DNS:{name}"))?;
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {
                "server": server, "certificate-authority": self.certificate("ca"),
            }}],
            "users": [{"name": name, "user": {
                "client-certificate": self.certificate(name), "client-key": self.key(name),
            }}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": name}}],
            "current-context": "local",
        });
        let path = self.dir.join(format!("{name}.kubeconfig"));
        std::fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
