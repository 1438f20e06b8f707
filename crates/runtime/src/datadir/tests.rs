//! Data directories: modes, locks, writes that are whole or not there.

use super::*;

#[test]
fn writes_replace_whole_files_and_leave_nothing_else() {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::open(outer.path().join("a/b")).unwrap();
    directory.write_atomic("keys/root", b"one", 0o600).unwrap();
    directory.write_atomic("keys/root", b"two", 0o600).unwrap();
    assert_eq!(directory.read_secret("keys/root").unwrap().as_slice(), b"two");
    assert_eq!(std::fs::read_dir(directory.path().join("keys")).unwrap().count(), 1);
    assert_eq!(directory.read("none", 10).unwrap(), None);
    assert_eq!(directory.read("keys/root", 2).unwrap_err().code, "file_too_large");
    assert_eq!(directory.read_secret("none").unwrap_err().code, "file_missing");
}

#[test]
fn a_destroyed_secret_takes_along_what_a_killed_write_left_of_it() {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::open(outer.path()).unwrap();
    let keys = directory.path().join("keys");
    assert!(!directory.destroy("keys/a").unwrap());
    for name in ["keys/a", "keys/b", "keys/a.b"] {
        directory.write_atomic(name, b"secret", 0o600).unwrap();
    }
    for left in [".a.77.3.tmp", ".b.77.4.tmp", ".a.b"] {
        std::fs::write(keys.join(left), b"secret").unwrap();
    }
    // Another name shows what was in it before it lost its own.
    std::fs::hard_link(keys.join(".a.77.3.tmp"), outer.path().join("disk")).unwrap();
    assert!(directory.destroy("keys/a").unwrap());
    assert!(!directory.destroy("keys/a").unwrap());
    let left = std::fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [".a.b", ".b.77.4.tmp", "a.b", "b"]);
    assert_eq!(std::fs::read(outer.path().join("disk")).unwrap(), [0; 6]);
}

#[test]
fn names_never_leave_the_directory() {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::open(outer.path()).unwrap();
    for name in ["", "/", "/etc/passwd", "//x", "..", "../x", "a/..", "a/../../x", ".", "a\0b"] {
        assert!(directory.file(name).is_err(), "{name:?}");
        assert!(directory.write_atomic(name, b"x", 0o600).is_err(), "{name:?}");
        assert!(directory.read(name, 9).is_err() && directory.read_secret(name).is_err());
    }
}

#[test]
fn a_second_program_on_the_same_directory_is_refused() {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::open(outer.path()).unwrap();
    let lock = directory.lock("relay").unwrap();
    let error = directory.lock("relay").unwrap_err();
    assert_eq!(error.code, "already_running");
    assert!(error.message.contains(&std::process::id().to_string()), "{}", error.message);
    drop(lock);
    directory.lock("relay").unwrap();
}

#[cfg(unix)]
#[test]
fn a_lock_that_is_a_link_empties_no_other_file() {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::open(outer.path().join("data")).unwrap();
    let other = outer.path().join("other");
    std::fs::write(&other, "precious").unwrap();
    std::os::unix::fs::symlink(&other, directory.path().join("relay.lock")).unwrap();
    assert_eq!(directory.lock("relay").unwrap_err().code, "data_dir_unwritable");
    assert_eq!(std::fs::read(&other).unwrap(), b"precious");
}

#[test]
fn a_missing_directory_is_not_made_by_commands_that_only_look() {
    let outer = tempfile::tempdir().unwrap();
    let error = DataDir::open_existing(outer.path().join("x")).unwrap_err();
    assert_eq!(error.exit, crate::cli::Exit::NotThere);
    assert!(!outer.path().join("x").exists());
}

#[cfg(unix)]
#[test]
fn exposed_directories_are_tightened_only_when_ours() {
    use std::os::unix::fs::PermissionsExt;
    let outer = tempfile::tempdir().unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    // One that is not there yet: it, what is made on the way, and what is put into it.
    let made = outer.path().join("made/here");
    let directory = DataDir::open(&made).unwrap();
    directory.write_atomic("keys/root", b"s", 0o600).unwrap();
    for (at, expected) in [("", 0o700), ("keys", 0o700), ("keys/root", 0o600)] {
        assert_eq!(mode(&made.join(at)), expected, "{at}");
    }
    let new = outer.path().join("new");
    std::fs::create_dir(&new).unwrap();
    std::fs::write(new.join("relay.toml"), "").unwrap();
    open(&new);
    DataDir::open(&new).unwrap();
    assert_eq!(mode(&new), 0o700);
    open(&new);
    DataDir::open(&new).unwrap();
    assert_eq!(mode(&new), 0o700);

    let foreign = outer.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("x"), "").unwrap();
    open(&foreign);
    assert_eq!(DataDir::open(&foreign).unwrap_err().code, "data_dir_exposed");
    assert_eq!(mode(&foreign), 0o755);
}

#[cfg(unix)]
#[test]
fn secrets_that_others_can_read_are_refused() {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::open(outer.path()).unwrap();
    directory.write_atomic("key", b"s", 0o644).unwrap();
    assert_eq!(directory.read_secret("key").unwrap_err().code, "secret_exposed");
}

#[test]
fn a_path_that_is_a_file_is_a_clear_error() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("f"), "").unwrap();
    let error = DataDir::open(outer.path().join("f")).unwrap_err();
    assert!(error.code.starts_with("data_dir_"), "{error:?}");
}

/// Whoever names a device or a link as the place of a file keeps it.
#[cfg(unix)]
#[test]
fn a_file_in_the_making_replaces_files_alone() {
    let outer = tempfile::tempdir().unwrap();
    let at = |name: &str| outer.path().join(name);
    std::os::unix::fs::symlink("/dev/null", at("link")).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    for name in ["link", "folder"] {
        let error = Part::create(&at(name)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    }
    for text in ["one", "two"] {
        let mut part = Part::create(&at("file")).unwrap();
        part.write(text.as_bytes()).unwrap();
        part.finish().unwrap();
        assert_eq!(std::fs::read_to_string(at("file")).unwrap(), text);
    }
}
