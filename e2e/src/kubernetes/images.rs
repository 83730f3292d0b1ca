//! Images of containers, as archives that containerd and kind import. Nothing is pulled from anywhere.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::programs::{part, program};
use crate::process::{run, workspace_binary};
use crate::scratch::Scratch;

/// Keeps the namespaces of a pod.
pub(super) const PAUSE: &str = "localhost/pause:1";
/// A shell and small tools, for pods of tests.
pub const BUSYBOX: &str = "localhost/busybox:1";
/// All our programs, as they were built beside the test.
pub const SHEEPDOG: &str = "localhost/sheepdog:dev";
/// Debian's PostgreSQL, for who starts with [`postgresql`].
pub const POSTGRESQL: &str = "localhost/postgresql:debian";

/// Our programs in the image.
const OURS: [&str; 5] = ["sheep", "dog", "sheep-csi", "sheep-device", "sheep-operator"];
/// Programs of other people that run in pods, each alone in an image of its name and version.
const OTHERS: [&str; 6] =
    ["coredns", "csi-attacher", "csi-provisioner", "csi-resizer", "csi-snapshotter", "snapshot-controller"];

/// Builds the images, or finds them in the cache; returns their archives.
///
/// # Errors
/// A program is missing or cannot be built.
pub(super) fn archives() -> Result<Vec<PathBuf>> {
    Ok(vec![others()?, ours()?])
}

/// Name of the image of one of the other programs.
///
/// # Errors
/// It cannot be built.
pub fn image_of(name: &str) -> Result<String> {
    let path = program(name)?;
    let file = path.file_name().unwrap_or_default().display().to_string();
    let version = file.strip_prefix(&format!("{name}-")).context("a program without a version")?;
    Ok(format!("localhost/{name}:{version}"))
}

fn others() -> Result<PathBuf> {
    let programs = OTHERS.iter().map(|name| program(name)).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Path> = programs.iter().map(PathBuf::as_path).collect();
    cached("others", &inputs, |archive| {
        let busybox = archive.layer(&[(Path::new("/bin/busybox"), "bin/busybox")], |root| {
            let bin = root.join("bin");
            let applets = run(bin.join("busybox"), ["--list"])?;
            let mut links = applets.lines().filter(|applet| *applet != "busybox");
            links.try_for_each(|applet| std::os::unix::fs::symlink("busybox", bin.join(applet)))?;
            ["etc", "tmp", "var"].iter().try_for_each(|dir| std::fs::create_dir(root.join(dir)))?;
            Ok(())
        })?;
        archive.image(PAUSE, json!({"Cmd": ["/bin/sleep", "1000000000"]}), std::slice::from_ref(&busybox))?;
        archive.image(BUSYBOX, json!({"Cmd": ["/bin/sh"]}), &[busybox])?;
        for (name, path) in OTHERS.iter().zip(&programs) {
            let layer = archive.layer(&[(path, name)], |_| Ok(()))?;
            archive.image(&image_of(name)?, json!({"Entrypoint": [format!("/{name}")]}), &[layer])?;
        }
        Ok(())
    })
}

fn ours() -> Result<PathBuf> {
    let base = PathBuf::from(run("bash", [part("base.sh")])?.trim());
    let programs = OURS.iter().map(|name| workspace_binary(name)).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Path> = programs.iter().chain([&base]).map(PathBuf::as_path).collect();
    cached("ours", &inputs, |archive| {
        let base = archive.add_layer(&base)?;
        let paths: Vec<String> = OURS.iter().map(|name| format!("usr/bin/{name}")).collect();
        let files: Vec<(&Path, &str)> =
            programs.iter().map(PathBuf::as_path).zip(paths.iter().map(String::as_str)).collect();
        let own = archive.layer(&files, |root| {
            // Debug information is most of a program, and everything is imported once per node.
            let copies = paths.iter().map(|path| root.join(path).into_os_string());
            run("strip", ["--strip-debug".into()].into_iter().chain(copies)).map(drop)
        })?;
        archive.image(SHEEPDOG, json!({"Entrypoint": ["/usr/bin/sheep"]}), &[base, own])
    })
}

/// Builds the image of PostgreSQL, or finds it in the cache; returns its archive, and the ids of the user and the group that Debian
/// gives it.
///
/// # Errors
/// No Debian mirror can be reached.
pub fn postgresql() -> Result<(PathBuf, [String; 2])> {
    let script = part("base.sh");
    let base = run("bash", [script.as_os_str(), "postgresql".as_ref(), "postgresql".as_ref()])?;
    let base = PathBuf::from(base.trim());
    let users = run(
        "tar",
        [
            "--extract".as_ref(),
            "--to-stdout".as_ref(),
            "--file".as_ref(),
            base.as_os_str(),
            "./etc/passwd".as_ref(),
        ],
    )?;
    let user = users.lines().find_map(|line| line.strip_prefix("postgres:")).context("no user postgres")?;
    let mut ids = user.split(':').skip(1).map(str::to_owned);
    let ids = [ids.next(), ids.next()].map(Option::unwrap_or_default);
    let archive = cached("postgresql", &[&base], |archive| {
        let layer = archive.add_layer(&base)?;
        archive.image(POSTGRESQL, json!({}), &[layer])
    })?;
    Ok((archive, ids))
}

/// An archive in the making: a directory of layers and configurations.
struct Archive {
    scratch: Scratch,
    images: Vec<Value>,
}

/// The archive `kind` of these inputs. One of other inputs, or older ones, is of no use any more.
fn cached(kind: &str, inputs: &[&Path], make: impl FnOnce(&mut Archive) -> Result<()>) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from);
    let cache = std::env::var_os("E2E_KUBERNETES")
        .map_or_else(|| home.join(".cache/sheepdog/kubernetes"), PathBuf::from);
    let mut what = String::new();
    for path in inputs {
        let about = std::fs::metadata(path).with_context(|| format!("{}", path.display()))?;
        writeln!(what, "{} {} {:?}", path.display(), about.len(), about.modified()?)?;
    }
    let (target, label) = (cache.join(format!("images-{kind}.tar")), cache.join(format!("images-{kind}.of")));
    if target.exists() && std::fs::read_to_string(&label).is_ok_and(|made| made == what) {
        return Ok(target);
    }
    let mut archive = Archive { scratch: Scratch::new("images")?, images: Vec::new() };
    make(&mut archive)?;
    let dir = archive.scratch.path();
    std::fs::write(dir.join("manifest.json"), Value::from(archive.images).to_string())?;
    // Another run may make it at the same time.
    let part = target.with_extension(format!("part{}", std::process::id()));
    tar(dir, &part)?;
    let _ = std::fs::remove_file(&label);
    std::fs::rename(&part, &target).context("archive of images")?;
    std::fs::write(&label, what).context("label of an archive of images")?;
    Ok(target)
}

/// The same bytes for the same files.
fn tar(dir: &Path, to: &Path) -> Result<()> {
    let options =
        ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--create", "--file"];
    let words =
        options.iter().map(AsRef::as_ref).chain([to.as_os_str(), "--directory".as_ref(), dir.as_os_str()]);
    run("tar", words.chain([".".as_ref()])).map(drop)
}

impl Archive {
    /// A layer with these files (from, to); `finish` may add to it.
    fn layer(&mut self, files: &[(&Path, &str)], finish: impl FnOnce(&Path) -> Result<()>) -> Result<String> {
        let root = Scratch::new("layer")?;
        for (from, to) in files {
            let to = root.path().join(to);
            std::fs::create_dir_all(to.parent().context("a file in a layer")?)?;
            std::fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        }
        finish(root.path())?;
        let layer = Scratch::new("tar")?;
        let file = layer.path().join("layer");
        tar(root.path(), &file)?;
        self.add_layer(&file)
    }

    /// A layer that is there; returns its digest, which is also its name in the archive.
    fn add_layer(&mut self, file: &Path) -> Result<String> {
        let digest = digest(file)?;
        std::fs::copy(file, self.scratch.path().join(format!("{digest}.tar"))).context("adding a layer")?;
        Ok(digest)
    }

    fn image(&mut self, name: &str, mut process: Value, layers: &[String]) -> Result<()> {
        let digests: Vec<String> = layers.iter().map(|digest| format!("sha256:{digest}")).collect();
        process["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": digests},
        });
        let file = self.scratch.path().join("config");
        std::fs::write(&file, config.to_string())?;
        let config = format!("{}.json", digest(&file)?);
        std::fs::rename(&file, self.scratch.path().join(&config))?;
        let layers: Vec<String> = layers.iter().map(|digest| format!("{digest}.tar")).collect();
        self.images.push(json!({"Config": config, "RepoTags": [name], "Layers": layers}));
        Ok(())
    }
}

fn digest(file: &Path) -> Result<String> {
    let printed = run("sha256sum", [file])?;
    Ok(printed.split_whitespace().next().context("sha256sum printed nothing")?.to_owned())
}
