//! Filesystems of their own for tests: small ones in memory, and images behind loop devices.
//!
//! What must stay true: a mount does not outlive its guard, whatever happens in between. Where
//! mounting is not possible the reason is a sentence, for the one who skips.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for a filesystem that is still in use.
const BUSY_LIMIT: Duration = Duration::from_secs(20);
/// XFS wants 300 MB; the file is sparse.
const IMAGE_BYTES: u64 = 512 << 20;

/// A kind of filesystem that lives in an image.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    pub name: &'static str,
    make: &'static [&'static str],
}

pub const EXT4: Filesystem = Filesystem { name: "ext4", make: &["mkfs.ext4", "-q", "-F"] };
pub const XFS: Filesystem =
    Filesystem { name: "xfs", make: &["mkfs.xfs", "-q", "-f", "-m", "reflink=1"] };
pub const BTRFS: Filesystem = Filesystem { name: "btrfs", make: &["mkfs.btrfs", "-q", "-f"] };

/// A mounted filesystem, unmounted on drop.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
    image: Option<PathBuf>,
}

impl Mount {
    /// A filesystem in memory.
    pub fn tmpfs(at: &Path, bytes: u64) -> Result<Self, String> {
        Self::tmpfs_with(at, &format!("size={bytes}"))
    }

    /// The same with options of `mount`.
    pub fn tmpfs_with(at: &Path, options: &str) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|e| format!("create {}: {e}", at.display()))?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at))?;
        Ok(Self { at: at.to_path_buf(), image: None })
    }

    /// A new filesystem in the file `image`, which is created, behind a loop device.
    pub fn image(kind: Filesystem, image: &Path, at: &Path) -> Result<Self, String> {
        let file = File::create(image).and_then(|file| file.set_len(IMAGE_BYTES));
        file.map_err(|e| format!("create {}: {e}", image.display()))?;
        let (program, options) = kind.make.split_first().expect("a program");
        run(Command::new(program).args(options).arg(image))?;
        fs::create_dir_all(at).map_err(|e| format!("create {}: {e}", at.display()))?;
        let mount = Self { at: at.to_path_buf(), image: Some(image.to_path_buf()) };
        mount.mount()?;
        Ok(mount)
    }

    /// The directory `from` a second time: the same filesystem, and no hard links between the two.
    pub fn bind(from: &Path, at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|e| format!("create {}: {e}", at.display()))?;
        run(Command::new("mount").arg("--bind").arg(from).arg(at))?;
        Ok(Self { at: at.to_path_buf(), image: None })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// A path on it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    fn mount(&self) -> Result<(), String> {
        let Some(image) = &self.image else { return Ok(()) };
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.at))
    }

    fn unmount(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            match run(Command::new("umount").arg(&self.at)) {
                Err(_) if began.elapsed() < BUSY_LIMIT => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                outcome => return outcome,
            }
        }
    }

    /// Unmounts an image and mounts it again: nothing of the page cache stays.
    pub fn remount(&self) -> Result<(), String> {
        self.unmount()?;
        self.mount()
    }

    /// Changes what a filesystem in memory may be.
    pub fn remount_with(&self, options: &str) -> Result<(), String> {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.at))
    }

    /// Free space in bytes.
    pub fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.at).map_or(0, |s| s.f_bavail * s.f_frsize)
    }

    /// Space that is taken, in bytes.
    pub fn used(&self) -> u64 {
        rustix::fs::statvfs(&self.at).map_or(0, |s| (s.f_blocks - s.f_bfree) * s.f_frsize)
    }

    /// Takes all space but about `left` bytes with a file.
    pub fn fill_up(&self, ballast: &str, left: u64) -> std::io::Result<()> {
        let file = File::create(self.at.join(ballast))?;
        // Others take space meanwhile.
        for _ in 0..100 {
            let end = file.metadata()?.len();
            let more = self.free().saturating_sub(left);
            if more == 0 {
                break;
            }
            let flags = rustix::fs::FallocateFlags::empty();
            if rustix::fs::fallocate(&file, flags, 0, end + more).is_ok() {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let plain = Command::new("umount").arg(&self.at).output();
        if !plain.is_ok_and(|output| output.status.success()) {
            // Whoever still uses it keeps it; the name is gone.
            let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
        }
    }
}

/// Runs a command; what it complains about is the error.
fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    Err(format!("{program}: {} {complaint}", output.status))
}
