//! Any bytes as what a user gives the program: a key to print, an escaped text, a line of tsv or
//! jsonl, and, after a first line `esker`, its arguments, one a line.

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use esker_cli::fuzzing;

/// Whatever the program prints it can read back, on one line that steers no terminal; whatever it
/// accepts means the same after it was printed; wrong arguments are wrong usage.
pub fn check(data: &[u8]) {
    check_escapes(data);
    check_hex(data);
    let key_len = data.first().map_or(0, |&len| usize::from(len).min(data.len()));
    check_entry(&data[..key_len], &data[key_len..]);
    check_line(data);
    if let Some(arguments) = data.strip_prefix(b"esker\n") {
        check_arguments(arguments);
    }
}

fn check_escapes(data: &[u8]) {
    let printed = fuzzing::escape(data);
    assert!(!printed.contains(char::is_control), "{printed:?} steers a terminal");
    assert_eq!(fuzzing::unescape(printed.as_bytes()).as_deref(), Ok(data), "{printed}");
    if let Ok(bytes) = fuzzing::unescape(data) {
        assert!(bytes.len() <= data.len(), "an escape is longer than what it stands for");
        let printed = fuzzing::escape(&bytes);
        assert_eq!(fuzzing::unescape(printed.as_bytes()), Ok(bytes), "{printed}");
    }
}

fn check_hex(data: &[u8]) {
    assert_eq!(fuzzing::unhex(&fuzzing::hex(data)).as_deref(), Some(data));
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(bytes) = fuzzing::unhex(text) {
        assert_eq!(fuzzing::hex(&bytes), text.to_ascii_lowercase());
    }
}

/// An entry as `scan` prints it, in both forms, is the entry that `load` reads.
fn check_entry(key: &[u8], value: &[u8]) {
    let printed = format!("{}\t{}", fuzzing::escape(key), fuzzing::escape(value));
    let (first, second) = fuzzing::tsv(printed.as_bytes());
    assert_eq!(fuzzing::unescape(first).as_deref(), Ok(key));
    assert_eq!(fuzzing::unescape(second).as_deref(), Ok(value));
    let line = fuzzing::json_line(key, value).expect("JSON for every entry");
    assert!(!line.contains('\n'), "one line an entry");
    assert_eq!(fuzzing::json(line.as_bytes()), Ok((key.to_vec(), value.to_vec())), "{line}");
}

/// Lines that somebody else wrote.
fn check_line(line: &[u8]) {
    let (key, value) = fuzzing::tsv(line);
    assert!(!key.contains(&b'\t') && key.len() + value.len() <= line.len());
    if let Ok((key, value)) = fuzzing::json(line) {
        let again = fuzzing::json_line(&key, &value).expect("JSON for every entry");
        assert_eq!(fuzzing::json(again.as_bytes()), Ok((key, value)), "{again}");
    }
}

thread_local! {
    static COMMAND: RefCell<clap::Command> = RefCell::new(fuzzing::command());
}

fn check_arguments(arguments: &[u8]) {
    let arguments = arguments.split(|&byte| byte == b'\n').map(|a| OsString::from_vec(a.to_vec()));
    let arguments = std::iter::once("esker".into()).chain(arguments);
    let parsed = COMMAND.with_borrow_mut(|command| command.try_get_matches_from_mut(arguments));
    if let Err(error) = parsed {
        assert!([0, 2].contains(&error.exit_code()), "{error}");
    }
}
