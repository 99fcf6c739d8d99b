//! A folder of a test's own, and what must not change in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::Value;

/// A folder of its own, removed in the end.
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Makes an empty one that every user can look into.
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sf-refresh-test-{}-{count}", std::process::id());
        let parent = fs::canonicalize(std::env::temp_dir()).expect("the folder for such");
        let path = parent.join(name);
        drop(fs::remove_dir_all(&path));
        fs::create_dir(&path).expect("a new folder");
        set_mode(&path, 0o755);
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a name in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file and gives its path.
    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.join(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The JSON in a file.
    pub fn json(&self, name: impl AsRef<Path>) -> Value {
        let bytes = self.read(name);
        let text = String::from_utf8_lossy(&bytes);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text:?}"))
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).expect("folder");
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.expect("entry").file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A test may have closed it even to its owner.
        drop(fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700)));
        drop(fs::remove_dir_all(&self.path));
    }
}

/// Sets the permission bits of a path.
pub fn set_mode(path: &Path, mode: u32) {
    let done = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    done.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Sets when a path was last written.
pub fn set_modified(path: &Path, time: SystemTime) {
    let file = fs::File::options().write(true).open(path);
    let set = file.and_then(|file| file.set_modified(time));
    set.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Makes a path look as if it had been written so long ago.
pub fn set_age(path: &Path, age: Duration) {
    set_modified(path, SystemTime::now() - age);
}

/// Whether the tests run as root; says what is skipped where they do not.
pub fn is_root(what: &str) -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !root {
        eprintln!("skipped: {what} (not root)");
    }
    root
}

/// A folder's files as they were at one time.
#[derive(Default)]
pub struct Snapshot {
    entries: BTreeMap<PathBuf, Entry>,
}

/// What must not change in a failing run: each thing by its name.
type Entry = Vec<(&'static str, Vec<u8>)>;

impl Snapshot {
    /// Everything in this folder, as it is now.
    pub fn of(folder: &Path) -> Self {
        let mut snapshot = Self::default();
        snapshot.add(folder, Path::new(""));
        snapshot
    }

    /// Adds what is in a folder; what other runs remove meanwhile is left out.
    fn add(&mut self, folder: &Path, prefix: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), prefix.join(entry.file_name()));
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                self.add(&path, &name);
            }
            self.entries.insert(name, entry_of(&path, &metadata));
        }
    }

    /// What differs from another one, a line each.
    pub fn differences(&self, after: &Self) -> String {
        let names: BTreeSet<_> = self.entries.keys().chain(after.entries.keys()).collect();
        let mut text = String::new();
        for name in names {
            let line = match (self.entries.get(name), after.entries.get(name)) {
                (Some(_), None) => "is gone".to_owned(),
                (None, Some(_)) => "is new".to_owned(),
                (Some(one), Some(other)) if one != other => {
                    let unlike = one.iter().zip(other).filter(|(one, other)| one != other);
                    let things: Vec<_> = unlike.map(|((thing, _), _)| *thing).collect();
                    format!("changed in {}", things.join(", "))
                }
                _ => continue,
            };
            let _ = writeln!(text, "{}: {line}", name.display());
        }
        text
    }

    /// The text of each file.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.entries.values().map(|entry| String::from_utf8_lossy(&entry[0].1).into_owned())
    }
}

/// What a name in a folder stands for; its bytes come first.
fn entry_of(path: &Path, metadata: &fs::Metadata) -> Entry {
    let is_file = metadata.is_file();
    let link = fs::read_link(path).unwrap_or_default();
    let text = |value: String| value.into_bytes();
    vec![
        ("bytes", if is_file { fs::read(path).unwrap_or_default() } else { Vec::new() }),
        ("target", text(link.to_string_lossy().into_owned())),
        ("kind or mode", text(metadata.mode().to_string())),
        ("owner", text(format!("{}:{}", metadata.uid(), metadata.gid()))),
        ("inode", text(metadata.ino().to_string())),
        ("links", text(if is_file { metadata.nlink().to_string() } else { String::new() })),
        ("time", text(format!("{:?}", metadata.modified().ok().filter(|_| is_file)))),
    ]
}
