//! Asking for permission without opening.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether this process, by its effective ids and capabilities, may open
/// `path` for reading and writing. Follows links. Takes ACLs and security
/// modules into account, which mode bits would not tell.
///
/// # Errors
/// What open(2) would answer: `EACCES`, `ENOENT`, `EROFS` and the like.
pub(crate) fn read_write(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a string that ends with a zero byte and outlives the
    // call, which reads it and nothing else.
    let answer = unsafe {
        libc::faccessat(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::R_OK | libc::W_OK,
            libc::AT_EACCESS,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_as_open_would() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        assert_eq!(
            read_write(&file).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        std::fs::write(&file, "").unwrap();
        read_write(&file).unwrap();
        let looped = folder.path().join("loop");
        std::os::unix::fs::symlink(&looped, &looped).unwrap();
        let error = read_write(&looped).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        assert!(read_write(Path::new("with\0zero")).is_err());
    }
}
