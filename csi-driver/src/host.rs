//! Mounts and programs of the machine.

use crate::capability::FsKind;
use crate::{Device, Error, Handle};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Number of the device that the file system is on.
    pub(crate) device: u64,
    /// What of the file system is mounted.
    pub(crate) root: PathBuf,
    pub(crate) point: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) fs: String,
}

/// Paths in mountinfo have blanks and the like as octal numbers.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let octal = bytes.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(code.unwrap_or(*byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

fn parse_line(line: &str) -> Option<Mounted> {
    let (mount, source) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    let read_only = fields.next()?.split(',').any(|option| option == "ro");
    Some(Mounted { device, root, point, read_only, fs: source.split(' ').next()?.to_owned() })
}

/// Everything that is mounted, in the order in which it was.
pub(crate) fn mounts() -> Result<Vec<Mounted>, Error> {
    let text = std::fs::read_to_string("/proc/self/mountinfo");
    let text = text.map_err(|error| Error::Internal(format!("cannot read what is mounted: {error}")))?;
    Ok(text.lines().filter_map(parse_line).collect())
}

/// What is mounted at a path, the last thing on top.
pub(crate) fn mounted_at(path: &Path) -> Result<Option<Mounted>, Error> {
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok(mounts()?.into_iter().rfind(|mounted| mounted.point == real))
}

/// The number of a block device, if the path is one.
pub(crate) fn block_device(path: &Path) -> Option<u64> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata.file_type().is_block_device().then(|| metadata.rdev())
}

/// The number of a volume's device. Paths and numbers of devices are given again: that it is the volume's is looked up each
/// time, before anything is written there or shown to a pod.
pub(crate) fn number_of(device: &Device) -> Result<u64, Error> {
    let path = device.path.display();
    let number = block_device(&device.path)
        .ok_or_else(|| Error::Internal(format!("{path} is no block device of this machine")))?;
    if is_device_of(number, &device.volume) {
        return Ok(number);
    }
    Err(Error::Unavailable(format!("{path} was the device of volume {}, and is not any more", device.volume)))
}

/// Whether a device, by its number, is or was made of this volume: the name of its file says so, also when the device itself
/// is given up.
pub(crate) fn is_device_of(number: u64, volume: &Handle) -> bool {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let file = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file"));
    file.is_ok_and(|file| is_file_of(file.trim_end(), volume))
}

/// Files are called `sheep:CLUSTER:NODE:VOLUME:ATTACHMENT`.
fn is_file_of(path: &str, volume: &Handle) -> bool {
    let words: Vec<&str> = path.rsplit('/').next().unwrap_or_default().split(':').collect();
    let id = volume.id.to_string();
    matches!(words[..], ["sheep", cluster, _, of, _] if cluster == volume.cluster && of == id)
}

/// Runs a program to its end; what it has written.
pub(crate) async fn run(program: &str, args: &[&OsStr]) -> Result<String, Error> {
    let (code, said) = run_for_code(program, args).await?;
    if code == 0 { Ok(said) } else { Err(Error::Internal(sentence(program, args, code, &said))) }
}

fn sentence(program: &str, args: &[&OsStr], code: i32, said: &str) -> String {
    let words: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
    let said = if said.is_empty() { "it says nothing" } else { said };
    format!("`{program} {}` failed with status {code}: {said}", words.join(" "))
}

/// Runs a program to its end; its exit status, and what it has written.
async fn run_for_code(program: &str, args: &[&OsStr]) -> Result<(i32, String), Error> {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null());
    // It goes on to its end, whoever waits for it.
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.map_err(|_| Error::Unavailable("the driver is stopping".into()))?;
    let output = output.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::Precondition(format!("the program {program} is not installed on this node"))
        }
        _ => Error::Internal(format!("cannot run {program}: {error}")),
    })?;
    let text = if output.status.success() { output.stdout } else { [output.stderr, output.stdout].concat() };
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Ok((output.status.code().unwrap_or(-1), text))
}

/// Makes a file system. What is on the device is gone.
pub(crate) async fn make_filesystem(device: &Path, kind: FsKind, options: &[String]) -> Result<(), Error> {
    // Left by an attempt that did not get to its end.
    run("wipefs", &["--all".as_ref(), "--quiet".as_ref(), device.as_ref()]).await?;
    // The device is blank, so there is nothing to discard; and no blocks are kept for root.
    let fixed: &[&str] = match kind {
        FsKind::Ext4 => &["-q", "-m", "0", "-E", "nodiscard"],
        FsKind::Xfs => &["-q", "-K"],
    };
    let mut args: Vec<&OsStr> = fixed.iter().map(AsRef::as_ref).collect();
    args.extend(options.iter().map(|option| OsStr::new(option.as_str())));
    args.push(device.as_ref());
    run(&format!("mkfs.{kind}"), &args).await?;
    run("blockdev", &["--flushbufs".as_ref(), device.as_ref()]).await.map(drop)
}

/// Repairs what a power cut may leave, on a file system that is not mounted. XFS does that when it is mounted.
pub(crate) async fn check_filesystem(device: &Path, kind: FsKind) -> Result<(), Error> {
    if kind != FsKind::Ext4 {
        return Ok(());
    }
    let args: [&OsStr; 2] = ["-p".as_ref(), device.as_ref()];
    let (code, said) = run_for_code("e2fsck", &args).await?;
    match code {
        // Clean, or repaired.
        0 | 1 => Ok(()),
        // Not an ext4 file system at all: mounting says that better.
        8 => Ok(()),
        _ => Err(Error::Internal(format!(
            "the file system is damaged and needs a person: {}",
            sentence("e2fsck", &args, code, &said)
        ))),
    }
}

/// Mounts a file system that is on a device.
pub(crate) async fn mount_filesystem(
    device: &Path,
    point: &Path,
    kind: FsKind,
    flags: &[String],
    read_only: bool,
) -> Result<(), Error> {
    let mut options: Vec<&str> = flags.iter().map(String::as_str).collect();
    if kind == FsKind::Xfs {
        // A clone has the identity of its origin, and may be mounted beside it.
        options.push("nouuid");
    }
    if read_only {
        // Nothing can be written, not even what is left in the journal.
        options.extend(["ro", if kind == FsKind::Xfs { "norecovery" } else { "noload" }]);
    }
    let mut args: Vec<&OsStr> = vec!["-t".as_ref(), kind.name().as_ref()];
    let options = options.join(",");
    if !options.is_empty() {
        args.extend(["-o".as_ref(), OsStr::new(&options)]);
    }
    args.extend([device.as_os_str(), point.as_os_str()]);
    run("mount", &args).await.map(drop)
}

/// What is on a device, for messages only: never to decide anything.
pub(crate) async fn what_is_on(device: &Path) -> String {
    let args: [&OsStr; 5] =
        ["-p".as_ref(), "-s".as_ref(), "TYPE".as_ref(), "-ovalue".as_ref(), device.as_ref()];
    match run("blkid", &args).await {
        Ok(kind) if !kind.is_empty() => kind,
        Ok(_) | Err(_) => "nothing that is known".to_owned(),
    }
}

/// Whether a file system that is not mounted has something in its journal that it is not whole without. Of what is no such
/// file system: no, mounting says that better.
pub(crate) async fn needs_replay(device: &Path, kind: FsKind) -> Result<bool, Error> {
    let device = device.to_owned();
    let look = move || match kind {
        FsKind::Ext4 => ext4_needs_replay(&device),
        FsKind::Xfs => xfs_needs_replay(&device),
    };
    let answer = tokio::task::spawn_blocking(look).await;
    let answer = answer.map_err(|_| Error::Unavailable("the driver is stopping".into()))?;
    answer.map_err(|error| Error::Internal(format!("the file system's journal cannot be looked at: {error}")))
}

/// The superblock of ext4 says it with a bit.
fn ext4_needs_replay(device: &Path) -> std::io::Result<bool> {
    const SUPERBLOCK: u64 = 1024;
    let file = std::fs::File::open(device)?;
    let (mut magic, mut features) = ([0; 2], [0; 4]);
    file.read_exact_at(&mut magic, SUPERBLOCK + 0x38)?;
    file.read_exact_at(&mut features, SUPERBLOCK + 0x60)?;
    Ok(u16::from_le_bytes(magic) == 0xEF53 && u32::from_le_bytes(features) & 0x4 != 0)
}

/// Where the log of XFS begins and ends is found out by reading it, which its program does. The line that says it comes
/// before all that is in the log.
fn xfs_needs_replay(device: &Path) -> std::io::Result<bool> {
    let mut command = Command::new("xfs_logprint");
    command.arg("-t").arg(device).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let lines = child.stdout.take().into_iter().flat_map(|said| BufReader::new(said).lines());
    let state = lines.map_while(Result::ok).find(|line| line.contains("state: <"));
    // It is not read any further, and ends with its next line.
    let _ = child.kill();
    child.wait()?;
    Ok(state.is_some_and(|line| line.contains("<DIRTY>")))
}

/// Lets a mounted file system fill its device.
pub(crate) async fn grow_filesystem(device: &Path, point: &Path, fs: &str) -> Result<(), Error> {
    match fs {
        "ext4" => run("resize2fs", &[device.as_ref()]).await.map(drop),
        "xfs" => run("xfs_growfs", &[point.as_ref()]).await.map(drop),
        _ => {
            Err(Error::Internal(format!("{} has a file system {fs}, which cannot be grown", point.display())))
        }
    }
}

/// Shows something at another path too.
pub(crate) async fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), Error> {
    run("mount", &["--bind".as_ref(), from.as_ref(), to.as_ref()]).await?;
    if read_only {
        let done = run("mount", &["-o".as_ref(), "remount,bind,ro".as_ref(), to.as_ref()]).await;
        if done.is_err() {
            unmount(to).await?;
        }
        done?;
    }
    Ok(())
}

/// Unmounts whatever is mounted at a path.
pub(crate) async fn unmount(point: &Path) -> Result<(), Error> {
    while mounted_at(point)?.is_some() {
        run("umount", &[point.as_ref()]).await?;
    }
    Ok(())
}

/// Bytes and files of a file system: total, used, available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: [u64; 3],
    pub(crate) inodes: [u64; 3],
}

/// How full a file system is.
pub(crate) async fn room(point: PathBuf) -> Result<Room, Error> {
    // A file system that does not answer stops one thread and nobody else.
    let answer = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&point)).await;
    let answer = answer.map_err(|_| Error::Unavailable("the driver is stopping".into()))?;
    let stat = answer
        .map_err(|error| Error::Internal(format!("the file system does not say how full it is: {error}")))?;
    let unit = stat.f_frsize;
    let used = (stat.f_blocks.saturating_sub(stat.f_bfree)) * unit;
    Ok(Room {
        bytes: [stat.f_blocks * unit, used, stat.f_bavail * unit],
        inodes: [stat.f_files, stat.f_files.saturating_sub(stat.f_ffree), stat.f_ffree],
    })
}

/// Bytes of a block device.
pub(crate) async fn device_size(device: &Path) -> Result<u64, Error> {
    let said = run("blockdev", &["--getsize64".as_ref(), device.as_ref()]).await?;
    said.parse().map_err(|_| Error::Internal(format!("blockdev says {said:?}")))
}

/// An error about a path.
pub(crate) fn trouble(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::Internal(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = "53 28 7:3 / /var/lib/kubelet/a\\040b rw,relatime shared:27 - ext4 /dev/loop3 rw";
        let mounted = parse_line(line).unwrap();
        assert_eq!(mounted.device, rustix::fs::makedev(7, 3));
        assert_eq!((mounted.point.as_path(), mounted.read_only), (Path::new("/var/lib/kubelet/a b"), false));
        assert_eq!((mounted.fs.as_str(), mounted.root.as_path()), ("ext4", Path::new("/")));
        let block = "60 28 0:5 /loop3 /target ro,nosuid - devtmpfs udev rw,size=1k";
        let mounted = parse_line(block).unwrap();
        assert_eq!((mounted.root.as_path(), mounted.read_only), (Path::new("/loop3"), true));
        assert_eq!(parse_line("nonsense"), None);
        assert_eq!(unescape("a\\134b\\9\\"), Path::new("a\\b\\9\\"));
        assert!(mounts().unwrap().iter().any(|mounted| mounted.point == Path::new("/proc")));
    }

    #[test]
    fn files_tell_whose_device_they_are() {
        let volume = Handle { cluster: "ab".into(), id: 7 };
        assert!(is_file_of("/run/sheepdog/devices/ab-7/sheep:ab:node-1:7:99", &volume));
        assert!(is_file_of("sheep:ab:node-1:7:99", &volume));
        for other in ["/sheep:ab:node-1:77:99", "/sheep:cd:node-1:7:99", "/disk", "/ab-7.volume", ""] {
            assert!(!is_file_of(other, &volume), "{other}");
        }
    }

    #[tokio::test]
    async fn programs_that_fail_or_are_missing() {
        assert_eq!(run("echo", &["a b".as_ref()]).await.unwrap(), "a b");
        let failed =
            run("sh", &["-c".as_ref(), "echo why >&2; exit 3".as_ref()]).await.unwrap_err().to_string();
        assert!(failed.contains("status 3") && failed.ends_with("why"), "{failed}");
        let missing = run("no-such-program", &[]).await.unwrap_err();
        assert!(
            matches!(&missing, Error::Precondition(text) if text.contains("no-such-program")),
            "{missing:?}"
        );
    }
}
