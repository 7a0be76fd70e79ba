//! What is served: repositories and their files.

use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::fs::File as DiskFile;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Who may read a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    #[default]
    Public,
    /// Everybody sees that it is there; its files need a token whose account was let in.
    Gated,
    /// Without such a token it is as if it were not there.
    Private,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone)]
pub enum Body {
    /// In memory.
    Memory(Vec<u8>),
    /// On the disk: path and length.
    Disk(PathBuf, u64),
    /// A beginning, and zeros up to a length: gigabytes that take no space.
    Zeros(Vec<u8>, u64),
}

/// One model.
#[derive(Debug)]
pub struct Repository {
    pub(crate) id: String,
    pub(crate) access: Access,
    pub(crate) files: BTreeMap<String, File>,
    /// Branches and tags besides `main`.
    pub(crate) revisions: Vec<String>,
}

/// One file of a model.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) body: Body,
    /// Whether it is kept in large file storage: served by the CDN, named by its SHA-256.
    pub(crate) large: bool,
    etag: OnceLock<String>,
}

impl Repository {
    /// A repository of this id, `org/name`, without files.
    pub fn new(id: &str) -> Self {
        Self { id: id.into(), access: Access::Public, files: BTreeMap::new(), revisions: Vec::new() }
    }

    /// The files of a directory and of those below it, but for hidden ones.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn from_dir(id: &str, dir: &Path) -> io::Result<Self> {
        let mut repository = Self::new(id);
        repository.add_dir(dir, "")?;
        Ok(repository)
    }

    /// The repositories below a directory: `DIR/name`, `DIR/org/name`, each where there is a `config.json`. If
    /// `dir` itself has one, it is the only repository, called `local/<its name>`.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn all_in(dir: &Path) -> io::Result<Vec<Self>> {
        let is_model = |dir: &Path| dir.join("config.json").is_file();
        if is_model(dir) {
            let dir = dir.canonicalize()?;
            let name = dir.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
            return Ok(vec![Self::from_dir(&format!("local/{name}"), &dir)?]);
        }
        let mut found = Vec::new();
        for (name, first) in folders(dir)? {
            if is_model(&first) {
                found.push(Self::from_dir(&name, &first)?);
                continue;
            }
            for (second_name, second) in folders(&first)? {
                if is_model(&second) {
                    found.push(Self::from_dir(&format!("{name}/{second_name}"), &second)?);
                }
            }
        }
        Ok(found)
    }

    fn add_dir(&mut self, dir: &Path, prefix: &str) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.starts_with('.') {
                continue;
            }
            let metadata = std::fs::metadata(&path)?;
            if metadata.is_dir() {
                self.add_dir(&path, &format!("{prefix}{name}/"))?;
            } else {
                self.put(&format!("{prefix}{name}"), Body::Disk(path.clone(), metadata.len()));
            }
        }
        Ok(())
    }

    /// Adds a file.
    pub fn with(mut self, name: &str, bytes: Vec<u8>) -> Self {
        self.put(name, Body::Memory(bytes));
        self
    }

    /// Adds a file.
    pub fn with_body(mut self, name: &str, body: Body) -> Self {
        self.put(name, body);
        self
    }

    /// Without the files that `unwanted` names.
    pub fn without(mut self, unwanted: impl Fn(&str) -> bool) -> Self {
        self.files.retain(|name, _| !unwanted(name));
        self
    }

    /// Restricts who may read it.
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Adds a branch or tag at the same commit as `main`.
    pub fn with_revision(mut self, name: &str) -> Self {
        self.revisions.push(name.into());
        self
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn put(&mut self, name: &str, body: Body) {
        // As the .gitattributes of the Hub's repositories say.
        let endings = [".safetensors", ".bin", ".gguf", ".model", ".pt", ".pth"];
        let large = endings.iter().any(|ending| name.ends_with(ending)) || body.len() > 10 << 20;
        self.files.insert(name.into(), File { body, large, etag: OnceLock::new() });
    }

    /// The commit: a hash of the names and contents.
    pub fn commit(&self) -> String {
        let mut hash = Sha1::new();
        for (name, file) in &self.files {
            hash.update(name.as_bytes());
            hash.update(file.body.len().to_le_bytes());
            match &file.body {
                Body::Memory(bytes) | Body::Zeros(bytes, _) => hash.update(bytes),
                // Hashing gigabytes to say hello would take long: a file that changes changes its time.
                Body::Disk(path, _) => {
                    let changed = std::fs::metadata(path).and_then(|found| found.modified());
                    hash.update(format!("{changed:?}"));
                }
            }
        }
        hex(&hash.finalize())
    }

    pub(crate) fn has_revision(&self, revision: &str) -> bool {
        revision == "main" || revision == self.commit() || self.revisions.iter().any(|name| name == revision)
    }
}

impl Body {
    /// Bytes of the whole file.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is nothing special here")]
    pub fn len(&self) -> u64 {
        match self {
            Body::Memory(bytes) => bytes.len() as u64,
            Body::Disk(_, len) | Body::Zeros(_, len) => *len,
        }
    }

    /// A reader of the bytes from `at` on.
    pub(crate) fn reader(&self, at: u64) -> io::Result<Box<dyn Read + '_>> {
        let rest = |bytes: &[u8]| bytes.len().min(usize::try_from(at).unwrap_or(usize::MAX));
        Ok(match self {
            Body::Memory(bytes) => Box::new(&bytes[rest(bytes)..]),
            Body::Zeros(bytes, len) => {
                let head = &bytes[rest(bytes)..];
                Box::new(head.chain(io::repeat(0)).take(len.saturating_sub(at)))
            }
            Body::Disk(path, _) => {
                let mut file = DiskFile::open(path)?;
                file.seek(SeekFrom::Start(at))?;
                Box::new(file)
            }
        })
    }
}

impl File {
    /// The name of its contents: the SHA-256 of a large file, else git's hash of a blob.
    pub(crate) fn etag(&self) -> &str {
        self.etag.get_or_init(|| {
            let mut sha256 = Sha256::new();
            let mut git = Sha1::new();
            git.update(format!("blob {}\0", self.body.len()));
            if let Body::Zeros(head, len) = &self.body {
                // Gigabytes of zeros are made to be looked at, not to be downloaded: a name will do.
                sha256.update(head);
                sha256.update(len.to_le_bytes());
                return hex(&sha256.finalize());
            }
            let mut piece = vec![0; 1 << 20];
            let mut reader = self.body.reader(0).unwrap_or_else(|_| Box::new(io::empty()));
            while let Ok(read @ 1..) = reader.read(&mut piece) {
                sha256.update(&piece[..read]);
                git.update(&piece[..read]);
            }
            if self.large { hex(&sha256.finalize()) } else { hex(&git.finalize()) }
        })
    }
}

/// The directories in a directory, sorted.
fn folders(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_dir(), path.file_name().and_then(|name| name.to_str()))
            && !name.starts_with('.')
        {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_gits_and_sha256() {
        let repository =
            Repository::new("a/b").with("x.txt", b"hello\n".to_vec()).with("x.safetensors", b"abc".to_vec());
        // git hash-object, sha256sum
        assert_eq!(repository.files["x.txt"].etag(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(
            repository.files["x.safetensors"].etag(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn directories_become_repositories() {
        let dir = tempfile::tempdir().unwrap();
        for model in ["org/one", "org/two", "three"] {
            std::fs::create_dir_all(dir.path().join(model).join("sub")).unwrap();
            std::fs::write(dir.path().join(model).join("config.json"), "{}").unwrap();
            std::fs::write(dir.path().join(model).join("sub/x"), "x").unwrap();
        }
        let ids = |found: Vec<Repository>| found.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
        let all = Repository::all_in(dir.path()).unwrap();
        assert_eq!(all[0].files.keys().collect::<Vec<_>>(), ["config.json", "sub/x"]);
        assert_eq!(ids(all), ["org/one", "org/two", "three"]);
        assert_eq!(ids(Repository::all_in(&dir.path().join("three")).unwrap()), ["local/three"]);
    }
}
