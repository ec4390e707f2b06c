//! The program as its users meet it: the real binary, its exit codes, its streams.
//!
//! Tests run as any user, root included, so nothing here relies on permission bits.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use esker::{Keyspace, PartitionOptions};
use serde_json::Value;
use tempfile::TempDir;

/// A scratch directory and the program run in it.
struct Shell {
    dir: TempDir,
}

impl Shell {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
        command.args(args).current_dir(self.dir.path()).env("TMPDIR", self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, b"")
    }

    fn run_with(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn({
            let input = input.to_vec();
            // The program may well not read its input.
            move || drop(stdin.write_all(&input))
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Ran { args: args.join(" "), output }
    }

    /// A keyspace `store` of two partitions and a few thousand entries.
    fn store(&self) {
        let lines: String = (0..3000).map(|n| format!("key{n:05}\tvalue {n}\n")).collect();
        let load = ["load", "store", "-p", "numbers", "--format", "tsv"];
        self.run_with(&load, lines.as_bytes()).ok();
        self.run(&["put", "store", "-p", "words", "hello", "world"]).ok();
    }
}

/// What one run did.
struct Ran {
    args: String,
    output: Output,
}

impl Ran {
    fn code(&self) -> i32 {
        self.output.status.code().expect("the program must exit, not die")
    }

    fn stdout(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    fn stderr(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    /// Succeeded, and had nothing to complain about.
    #[track_caller]
    fn ok(&self) -> String {
        assert_eq!((self.code(), self.stderr().as_str()), (0, ""), "esker {}", self.args);
        self.stdout()
    }

    /// Failed with this code and one sentence that has all of these words.
    #[track_caller]
    fn fails(&self, code: i32, words: &[&str]) -> String {
        let stderr = self.stderr();
        assert_eq!(self.code(), code, "esker {}: {stderr}", self.args);
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("esker: "), "esker {}: {stderr}", self.args);
        for word in words {
            assert!(stderr.contains(word), "esker {}: {word:?} is not in {stderr:?}", self.args);
        }
        assert!(!stderr.contains("panicked"), "esker {}: {stderr}", self.args);
        stderr
    }

    /// As [`Ran::fails`], with nothing else on stderr.
    #[track_caller]
    fn fails_in_one_line(&self, code: i32, words: &[&str]) {
        let stderr = self.fails(code, words);
        assert_eq!(stderr.lines().count(), 1, "esker {}: {stderr}", self.args);
    }
}

/// The content of every file below a directory.
fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                files.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

// ---- help and usage

#[test]
fn help_documents_the_exit_codes() {
    let shell = Shell::new();
    for args in [&["--help"][..], &["load", "--help"], &["verify", "--help"], &["get", "-h"]] {
        let help = shell.run(args).ok();
        for code in ["0  done", "1  failed", "2  wrong usage", "3  corruption", "4  open elsewhere"]
        {
            assert!(help.contains(code), "{code} is not in {help}");
        }
    }
}

#[test]
fn wrong_usage_exits_with_2_and_creates_nothing() {
    let shell = Shell::new();
    for args in [
        &[][..],
        &["fly"],
        &["load", "store"],
        &["load", "store", "-p", "p", "--format", "xml"],
        &["load", "store", "-p", "p", "--format", "files"],
        &["load", "store", "-p", "p", "--format", "files", "-"],
        &["load", "store", "-p", "p", "--format", "jsonl", "--escaped", "x"],
        &["load", "store", "-p", "p", "--format", "tsv", "--batch", "0"],
        &["load", "store", "-p", "p", "--format", "tsv", "--sorted", "--bulk"],
        &["load", "store", "-p", "p", "--format", "tsv", "--sort-memory", "5"],
        &["put", "store", "-p", "p", "--escaped", "\\q", "v"],
        &["scan", "store", "-p", "p", "--prefix", "a", "--from", "b"],
        &["verify", "store", "--threads", "0"],
        &["demo", "--seconds", "0"],
    ] {
        assert_eq!(shell.run(args).code(), 2, "{args:?}");
    }
    assert!(!shell.path("store").exists());
}

// ---- single entries

#[test]
fn an_entry_is_put_got_and_removed() {
    let shell = Shell::new();
    shell.run(&["put", "store", "-p", "p", "key", "value"]).ok();
    assert_eq!(shell.run(&["get", "store", "-p", "p", "key"]).ok(), "value");
    shell.run(&["remove", "store", "-p", "p", "--sync", "key"]).ok();
    let get = shell.run(&["get", "store", "-p", "p", "key"]);
    get.fails_in_one_line(1, &["there is no key key"]);
    shell.run(&["remove", "store", "-p", "p", "key"]).ok();
}

#[test]
fn a_value_comes_from_stdin_and_comes_back_byte_for_byte() {
    let shell = Shell::new();
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    shell.run_with(&["put", "store", "-p", "p", "--sync", "one", "-"], &value).ok();
    shell.run_with(&["put", "store", "-p", "p", "two"], &value).ok();
    for key in ["one", "two"] {
        let get = shell.run(&["get", "store", "-p", "p", key]);
        assert_eq!(get.code(), 0);
        assert!(get.output.stdout == value);
    }
}

#[test]
fn arguments_are_escaped_on_request() {
    let shell = Shell::new();
    shell.run(&["put", "store", "-p", "p", "--escaped", "a\\x00\\t", "\\n\\\\"]).ok();
    assert_eq!(shell.run(&["scan", "store", "-p", "p"]).ok(), "a\\x00\\t\t\\n\\\\\n");
    assert_eq!(shell.run(&["get", "store", "-p", "p", "--escaped", "a\\x00\\t"]).ok(), "\n\\");
    assert_eq!(shell.run(&["scan", "store", "-p", "p", "-e", "--from", "a\\xff"]).ok(), "");
}

#[test]
fn what_the_engine_never_takes_is_refused() {
    let shell = Shell::new();
    shell.run(&["put", "store", "-p", "p", "", "v"]).fails_in_one_line(1, &["key"]);
    let key = "k".repeat(65_536);
    shell.run(&["put", "store", "-p", "p", &key, "v"]).fails_in_one_line(1, &["65"]);
    shell.run(&["put", "store", "-p", "p", &key[1..], "v"]).ok();
    for name in ["", "a/b", &"p".repeat(256)] {
        shell.run(&["put", "store", "-p", name, "k", "v"]).fails_in_one_line(1, &[]);
    }
    assert_eq!(shell.run(&["count", "store"]).ok(), "p\t1\n");
}

#[test]
fn reading_creates_and_changes_nothing() {
    let shell = Shell::new();
    shell.store();
    let before = contents(&shell.path("store"));
    for args in [
        &["get", "store", "-p", "words", "hello"][..],
        &["scan", "store", "-p", "numbers"],
        &["count", "store"],
        &["info", "store"],
        &["digest", "store"],
        &["verify", "store"],
    ] {
        shell.run(args).ok();
    }
    assert!(before == contents(&shell.path("store")));
    assert_eq!(shell.dir.path().read_dir().unwrap().count(), 1, "something was left behind");
}

#[test]
fn what_is_not_there_is_not_created() {
    let shell = Shell::new();
    for args in [
        &["get", "store", "-p", "p", "k"][..],
        &["remove", "store", "-p", "p", "k"],
        &["scan", "store", "-p", "p"],
        &["count", "store"],
        &["info", "store"],
        &["digest", "store"],
        &["checkpoint", "store", "target"],
        &["copy", "store", "target"],
        &["verify", "store"],
    ] {
        shell.run(args).fails_in_one_line(1, &["store"]);
        assert_eq!(shell.dir.path().read_dir().unwrap().count(), 0, "{args:?}");
    }
}

#[test]
fn a_missing_partition_is_named() {
    let shell = Shell::new();
    shell.store();
    for args in [
        &["get", "store", "-p", "nope", "k"][..],
        &["remove", "store", "-p", "nope", "k"],
        &["scan", "store", "-p", "nope"],
        &["count", "store", "-p", "nope"],
        &["checkpoint", "store", "target", "--include", "nope"],
        &["checkpoint", "store", "target", "--exclude", "nope"],
    ] {
        shell.run(args).fails_in_one_line(1, &["nope"]);
    }
    assert_eq!(shell.run(&["count", "store"]).ok(), "numbers\t3000\nwords\t1\n");
    assert!(!shell.path("target").exists());
}

// ---- scan and count

#[test]
fn a_scan_is_cut_to_what_was_asked_for() {
    let shell = Shell::new();
    let lines = "a\t1\nab\t2\nac\t3\nb\t4\n";
    shell.run_with(&["load", "store", "-p", "p", "-f", "tsv", "-q"], lines.as_bytes()).ok();
    let scan = |args: &[&str]| shell.run(&[&["scan", "store", "-p", "p"], args].concat()).ok();
    assert_eq!(scan(&[]), lines);
    assert_eq!(scan(&["--keys", "--reverse"]), "b\nac\nab\na\n");
    assert_eq!(scan(&["--prefix", "a", "--limit", "2"]), "a\t1\nab\t2\n");
    assert_eq!(scan(&["--prefix", "a", "--limit", "1", "--reverse"]), "ac\t3\n");
    assert_eq!(scan(&["--from", "ab", "--to", "b"]), "ab\t2\nac\t3\n");
    assert_eq!(scan(&["--from", "b", "--to", "a"]), "");
    assert_eq!(scan(&["--limit", "0"]), "");
    assert_eq!(scan(&["--from", "b", "--json"]), "{\"key\":\"b\",\"value\":\"4\"}\n");
    assert_eq!(scan(&["--from", "b", "--json", "--keys"]), "{\"key\":\"b\"}\n");
    assert_eq!(shell.run(&["count", "store", "-p", "p"]).ok(), "4\n");
}

#[test]
fn a_scan_can_be_loaded_back_in_both_forms() {
    let shell = Shell::new();
    let entries = "a\\x00\\xff\t\\n\\t\\\\ \"é\"\nz\t\n";
    let load = ["load", "store", "-p", "p", "-f", "tsv", "--escaped", "-q"];
    shell.run_with(&load, entries.as_bytes()).ok();
    assert_eq!(shell.run(&["scan", "store", "-p", "p"]).ok(), entries);
    let json = shell.run(&["scan", "store", "-p", "p", "--json"]).ok();
    shell.run_with(&["load", "other", "-p", "p", "-f", "jsonl", "-q"], json.as_bytes()).ok();
    assert_eq!(shell.run(&["digest", "store"]).ok(), shell.run(&["digest", "other"]).ok());
}

#[test]
fn a_closed_pipe_ends_a_scan_quietly() {
    let shell = Shell::new();
    shell.store();
    let mut scan = shell.command(&["scan", "store", "-p", "numbers"]);
    let mut child = scan.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_device_behind_stdout_is_a_failure() {
    let shell = Shell::new();
    shell.store();
    let mut scan = shell.command(&["scan", "store", "-p", "numbers"]);
    let output = scan.stdout(File::create("/dev/full").unwrap()).output().unwrap();
    let scan = Ran { args: "scan > /dev/full".to_owned(), output };
    scan.fails_in_one_line(1, &["cannot write to standard output"]);
}

// ---- load

#[test]
fn files_are_loaded_under_their_relative_paths() {
    let shell = Shell::new();
    shell.file("tree/b", "2");
    shell.file("tree/a/empty", "");
    shell.file("tree/a/deep/bytes", [0, 255]);
    shell.file("single", "1");
    std::os::unix::fs::symlink("b", shell.path("tree/link")).unwrap();
    let load = shell.run(&["load", "store", "-p", "p", "--format", "files", "tree", "single"]).ok();
    assert!(load.starts_with("loaded 4 entries, "), "{load}");
    assert!(load.contains("left out 1 file not regular"), "{load}");
    let scan = shell.run(&["scan", "store", "-p", "p"]).ok();
    assert_eq!(scan, "a/deep/bytes\t\\x00\\xff\na/empty\t\nb\t2\nsingle\t1\n");
}

#[test]
fn the_later_of_two_inputs_wins_whatever_their_sizes() {
    let shell = Shell::new();
    for n in 0..50 {
        shell.file(&format!("one/{n}"), vec![b'1'; 300_000]);
        shell.file(&format!("two/{n}"), "2");
    }
    let load = ["load", "store", "-p", "p", "-f", "files", "--batch", "7", "-q", "one", "two"];
    assert_eq!(shell.run(&load).ok(), "");
    let scan = shell.run(&["scan", "store", "-p", "p"]).ok();
    assert_eq!(scan.lines().filter(|line| line.ends_with("\t2")).count(), 50);
}

#[test]
fn files_that_cannot_be_loaded_are_named_and_counted_and_the_rest_is_loaded() {
    let shell = Shell::new();
    shell.file("tree/fine", "content");
    // Holes only: it takes no room.
    File::create(shell.path("tree/huge")).unwrap().set_len(1 << 32).unwrap();
    let load = shell.run(&["load", "store", "-p", "p", "-f", "files", "nothing", "tree"]);
    let stderr = load.fails(1, &["nothing", "tree/huge", "4,294,967,296"]);
    assert_eq!(stderr.lines().count(), 3);
    assert!(stderr.ends_with("2 inputs could not be loaded, the rest was (1 entry)\n"), "{stderr}");
    assert_eq!(shell.run(&["get", "store", "-p", "p", "fine"]).ok(), "content");
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_fails_while_it_is_read_is_named() {
    let shell = Shell::new();
    shell.file("fine", "content");
    // A regular file that every user may open and nobody can read from its start.
    let load = shell.run(&["load", "store", "-p", "p", "-f", "files", "/proc/self/mem", "fine"]);
    load.fails(1, &["cannot read /proc/self/mem", "1 input could not be loaded"]);
    assert_eq!(shell.run(&["count", "store", "-p", "p"]).ok(), "1\n");
}

#[test]
fn a_keyspace_inside_its_own_input_is_left_out() {
    let shell = Shell::new();
    shell.file("tree/file", "content");
    shell.run(&["load", "tree/store", "-p", "p", "-f", "files", "tree"]).ok();
    assert_eq!(shell.run(&["scan", "tree/store", "-p", "p"]).ok(), "file\tcontent\n");
    let load = shell.run(&["load", "tree/store", "-p", "p", "-f", "files", "tree/store"]);
    load.fails(1, &["it is the keyspace"]);
}

#[test]
fn bad_lines_of_tsv_are_named_and_the_rest_is_loaded() {
    let shell = Shell::new();
    let long = "k".repeat(65_536);
    let input = shell.file("in.tsv", format!("a\t1\n\tempty\n{long}\tv\nb\n\nc\t3\t4\r\n"));
    let load = ["load", "store", "-p", "p", "-f", "tsv", input.to_str().unwrap(), "nothing"];
    let stderr = shell.run(&load).fails(
        1,
        &["in.tsv, line 2: the key is empty", "in.tsv, line 3: the key of 65,536", "line 5"],
    );
    assert!(stderr.contains("cannot read nothing"), "{stderr}");
    assert!(stderr.ends_with("4 inputs could not be loaded, the rest was (3 entries)\n"));
    assert_eq!(shell.run(&["scan", "store", "-p", "p"]).ok(), "a\t1\nb\t\nc\t3\\t4\\x0d\n");
}

#[test]
fn wrong_escapes_name_their_line() {
    let shell = Shell::new();
    let load = ["load", "store", "-p", "p", "-f", "tsv", "--escaped", "-"];
    let load = shell.run_with(&load, b"a\\x00\t1\nb\t\\q\n");
    load.fails(1, &["standard input, line 2: the backslash at byte 1"]);
    assert_eq!(shell.run(&["scan", "store", "-p", "p"]).ok(), "a\\x00\t1\n");
}

#[test]
fn malformed_jsonl_names_its_line_and_keeps_the_lines_before() {
    let shell = Shell::new();
    let lines = "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key_hex\":\"ff\",\"value_hex\":\"00\"}\n\
                 {\"key\":\"b\",\n{\"key\":\"c\",\"value\":\"3\"}\n";
    let input = shell.file("in.jsonl", lines);
    let input = input.to_str().unwrap();
    let load = shell.run(&["load", "store", "-p", "p", "-f", "jsonl", input]);
    load.fails_in_one_line(1, &["in.jsonl, line 4: ", "column", "2 entries before it loaded"]);
    assert_eq!(shell.run(&["scan", "store", "-p", "p"]).ok(), "a\t1\n\\xff\t\\x00\n");
}

#[test]
fn a_bulk_load_sorts_and_the_last_entry_of_a_key_stays() {
    let shell = Shell::new();
    let mut lines: Vec<String> =
        (0..40_000_u64).map(|n| format!("key {:05}\t{n}\n", n * 7919 % 20_000)).collect();
    lines.push("key 00000\tlast\n".to_owned());
    let load = ["load", "store", "-p", "p", "-f", "tsv", "--bulk", "--sort-memory", "1"];
    let summary = shell.run_with(&load, lines.concat().as_bytes()).ok();
    assert!(summary.starts_with("loaded 20,000 entries, "), "{summary}");
    assert_eq!(shell.run(&["count", "store", "-p", "p"]).ok().trim(), "20000");
    assert_eq!(shell.run(&["get", "store", "-p", "p", "key 00000"]).ok(), "last");
    let left: Vec<_> =
        fs::read_dir(shell.path(".")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["store"], "nothing is left of the sort");
    shell.run(&["verify", "store"]).ok();
}

#[test]
fn a_sorted_load_is_all_or_nothing() {
    let shell = Shell::new();
    let load = ["load", "store", "-p", "p", "-f", "tsv", "--sorted"];
    shell.run_with(&load, b"a\t1\nb\t2\nc\t3\n").ok();
    let unsorted = shell.run_with(&load, b"d\t4\nf\t5\ne\t6\n");
    unsorted.fails_in_one_line(1, &["standard input, line 3: the key \"e\"", "nothing was loaded"]);
    assert_eq!(shell.run(&["count", "store", "-p", "p"]).ok().trim(), "3");
    let jsonl = ["load", "store", "-p", "p", "-f", "jsonl", "--sorted"];
    let stopped = shell.run_with(&jsonl, b"{\"key\":\"x\",\"value\":\"1\"}\nnonsense\n");
    stopped.fails_in_one_line(1, &["line 2: ", "nothing was loaded"]);
    assert_eq!(shell.run(&["count", "store", "-p", "p"]).ok().trim(), "3");
}

#[test]
fn a_bulk_load_that_cannot_sort_says_where() {
    let shell = Shell::new();
    let load =
        ["load", "store", "-p", "p", "-f", "tsv", "--bulk", "--sort-memory", "1", "-T", "gone"];
    let lines: String = (0..40_000).map(|n| format!("{n}\tv\n")).collect();
    shell.run_with(&load, lines.as_bytes()).fails(1, &["cannot sort in gone: "]);
}

#[test]
fn a_summary_says_how_much_was_loaded_unless_quiet() {
    let shell = Shell::new();
    let load = ["load", "store", "-p", "p", "--format", "tsv"];
    let summary = shell.run_with(&load, b"a\tb\n").ok();
    assert!(summary.starts_with("loaded 1 entry, 2 B in "), "{summary}");
    assert_eq!(shell.run_with(&[&load[..], &["-q"]].concat(), b"a\tb\n").ok(), "");
}

// ---- info

#[test]
fn info_says_the_same_as_text_and_as_json() {
    let shell = Shell::new();
    shell.store();
    let json: Value = serde_json::from_str(&shell.run(&["info", "store", "--json"]).ok()).unwrap();
    let text = shell.run(&["info", "store"]).ok();
    for field in ["uuid", "timeline"] {
        let id = json[field].as_str().unwrap();
        assert_eq!(id.len(), 32);
        assert!(text.contains(id));
    }
    assert!(json["seqno"].as_u64().unwrap() > 0);
    let names = json["partitions"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["numbers", "words"]);
    assert!(text.contains("numbers") && text.contains("block_bytes 4096"), "{text}");
}

// ---- digest, checkpoint, copy, verify

#[test]
fn digests_are_those_of_the_specified_bytes() {
    let shell = Shell::new();
    shell.run(&["put", "store", "-p", "words", "hello", "world"]).ok();
    shell.run(&["put", "store", "-p", "empty", "gone", "x"]).ok();
    shell.run(&["remove", "store", "-p", "empty", "gone"]).ok();
    let hash = xxhash_rust::xxh3::xxh3_128(b"\x05\0\0\0hello\x05\0\0\0world");
    let empty = xxhash_rust::xxh3::xxh3_128(b"");
    let expected = format!("empty\t0\t{empty:032x}\nwords\t1\t{hash:032x}\n");
    assert_eq!(shell.run(&["digest", "store"]).ok(), expected);
    let json = shell.run(&["digest", "store", "--json"]).ok();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[1]["xxh3_128"], format!("{hash:032x}"));
    assert_eq!(json[1]["count"], 1);
}

#[test]
fn checkpoints_and_copies_have_equal_digests_and_verify() {
    let shell = Shell::new();
    shell.store();
    let digest = shell.run(&["digest", "store"]).ok();
    for (n, args) in [
        &["checkpoint", "store"][..],
        &["checkpoint", "store", "--flush", "--verify"],
        &["checkpoint", "store", "--copy"],
        &["copy", "store"],
        &["copy", "store", "--copy", "--verify"],
    ]
    .iter()
    .enumerate()
    {
        let target = format!("target-{n}");
        let args = [&args[..2], &[target.as_str()], &args[2..]].concat();
        let report = shell.run(&args).ok();
        assert!(report.contains("linked") && report.contains("seqno"), "{report}");
        assert_eq!(shell.run(&["digest", &target]).ok(), digest, "{args:?}");
        let verified = shell.run(&["verify", &target, "--threads", "2"]).ok();
        assert!(verified.contains("is sound"), "{verified}");
    }
}

#[test]
fn reports_as_json_are_nothing_but_json() {
    let shell = Shell::new();
    shell.store();
    let json = |args: &[&str]| -> Value {
        serde_json::from_str(&shell.run(&[args, &["--json"]].concat()).ok()).unwrap()
    };
    let checkpoint = json(&["checkpoint", "store", "one", "--exclude", "words"]);
    assert_eq!(checkpoint["left_out"][0], "words");
    assert_eq!(checkpoint["partitions"][0], "numbers");
    assert!(checkpoint["freeze_us"].as_f64().unwrap() > 0.0);
    let copy = json(&["copy", "store", "two", "--copy"]);
    assert_eq!(copy["linked"]["files"], 0);
    assert!(copy["copied"]["bytes"].as_u64().unwrap() > 0);
    let verify = json(&["verify", "two"]);
    assert_eq!(verify["sound"], true);
    assert_eq!(verify["seqno"], copy["seqno"]);
}

#[test]
fn checkpoints_are_listed_with_what_they_pin_and_go_when_they_have_expired() {
    let shell = Shell::new();
    shell.store();
    fs::create_dir(shell.path("backups")).unwrap();
    let take = |name: &str, more: &[&str]| {
        let target = format!("backups/{name}");
        shell.run(&[&["checkpoint", "store", &target], more].concat()).ok();
    };
    take("1", &["--expires-after", "0s"]);
    take("2", &["--expires-after", "4w"]);
    take("3", &["--expires-after", "0s"]);
    let json = |args: &[&str]| -> Value {
        let args = [&["checkpoints", "backups", "--json"], args].concat();
        serde_json::from_str(&shell.run(&args).ok()).unwrap()
    };
    let listed = json(&[]);
    assert_eq!(listed["checkpoints"].as_array().unwrap().len(), 3);
    let second = &listed["checkpoints"][1];
    assert_eq!(second["path"], "backups/2");
    let four_weeks = 28 * 24 * 60 * 60 * 1000;
    assert_eq!(
        second["expires_ms"].as_u64().unwrap() - second["created_ms"].as_u64().unwrap(),
        four_weeks
    );
    let table = shell.run(&["checkpoints", "backups", "backups/2", "store"]).ok();
    assert_eq!(table.lines().count(), 1 + 3 + 2, "{table}");
    assert!(table.contains("store is a keyspace that is written"), "{table}");
    assert!(table.contains("3 checkpoints together pin"), "{table}");
    let table = shell.run(&["checkpoints", "backups", "store", "-q"]).ok();
    assert_eq!(table.lines().count(), 4, "{table}");
    let dry = json(&["--remove-expired", "--dry-run"]);
    assert_eq!(
        (&dry["removed"][0]["path"], &dry["newest"][0]),
        (&"backups/1".into(), &"backups/3".into())
    );
    let remove = shell.run(&["checkpoints", "backups", "--remove-expired"]).ok();
    assert!(
        remove.contains("backups/1 is removed") && remove.contains("backups/3 stays"),
        "{remove}"
    );
    assert!(remove.lines().last().unwrap().ends_with(", 2 stay"), "{remove}");
    assert!(!shell.path("backups/1").exists() && shell.path("backups/3").exists());
    let removed = json(&["--remove-expired", "--even-newest"]);
    assert_eq!(removed["freed_bytes"], removed["removed"][0]["freed_bytes"]);
    shell.run(&["verify", "backups/2"]).ok();
    assert!(!shell.path("backups/3").exists());
}

#[test]
fn checkpoints_that_cannot_be_looked_at_or_removed_are_said_and_the_exit_code_tells() {
    let shell = Shell::new();
    shell.store();
    for args in [
        &["checkpoints"][..],
        &["checkpoints", ".", "--dry-run"],
        &["checkpoints", ".", "--even-newest"],
    ] {
        assert_eq!(shell.run(args).code(), 2, "{args:?}");
    }
    for bad in ["7", "7y", "-1d"] {
        let ran = shell.run(&["checkpoint", "store", "x", &format!("--expires-after={bad}")]);
        assert_eq!(ran.code(), 2, "{bad}");
    }
    for name in ["one", "two"] {
        shell.run(&["checkpoint", "store", name, "--expires-after", "0s"]).ok();
    }
    let missing = shell.run(&["checkpoints", "one", "missing"]);
    missing.fails_in_one_line(1, &["missing", "is not there"]);
    assert!(missing.stdout().contains("1 checkpoint together"), "{}", missing.stdout());
    let reader = esker::Config::new(shell.path("one")).read_only(true).open().unwrap();
    let removed = shell.run(&["checkpoints", ".", "--remove-expired", "--even-newest"]);
    removed.fails_in_one_line(4, &["one", "open elsewhere"]);
    assert!(shell.path("one").exists() && !shell.path("two").exists());
    reader.close().unwrap();
    let checkpoint = shell.path("one/CHECKPOINT");
    let mut bytes = fs::read(&checkpoint).unwrap();
    bytes[90] ^= 1;
    fs::write(&checkpoint, bytes).unwrap();
    shell.run(&["checkpoints", "."]).fails_in_one_line(3, &["one", "is damaged"]);
    let remove = ["checkpoints", ".", "--remove-expired", "--even-newest", "--quiet"];
    shell.run(&remove).fails_in_one_line(3, &["one", "is damaged"]);
    assert!(shell.path("one").exists(), "what cannot be read has not said that it expires");
}

#[test]
fn a_partial_checkpoint_holds_what_was_asked_for() {
    let shell = Shell::new();
    shell.store();
    shell.run(&["checkpoint", "store", "one", "--include", "words", "-q"]).ok();
    assert_eq!(shell.run(&["count", "one"]).ok(), "words\t1\n");
    shell.run(&["checkpoint", "store", "two", "--include", "words", "numbers", "-q"]).ok();
    assert_eq!(shell.run(&["digest", "two"]).ok(), shell.run(&["digest", "store"]).ok());
    let report = shell.run(&["checkpoint", "store", "three", "--exclude", "words"]).ok();
    assert!(report.contains("left out    words"), "{report}");
    assert_eq!(shell.run(&["count", "three"]).ok(), "numbers\t3000\n");
}

#[test]
fn bad_targets_are_refused_in_one_sentence() {
    let shell = Shell::new();
    shell.store();
    shell.file("file", "");
    let before = contents(&shell.path("store"));
    for command in ["checkpoint", "copy"] {
        for (target, words) in [
            ("store", &["exists"][..]),
            ("file", &["file exists"]),
            ("store/inside", &["inside"]),
            ("store/partitions/inside", &["inside"]),
            ("file/below", &["not a directory"]),
            ("/proc/target", &["/proc"]),
        ] {
            shell.run(&[command, "store", target]).fails_in_one_line(1, words);
        }
    }
    assert!(before.len() >= contents(&shell.path("store")).len());
    assert!(!shell.path("store/inside").exists());
    shell.run(&["verify", "store"]).ok();
}

#[test]
fn sources_that_are_no_keyspace_are_refused_in_one_sentence() {
    let shell = Shell::new();
    shell.file("file", "");
    shell.file("directory/file", "");
    for source in ["file", "directory", "nothing"] {
        for args in [
            &["checkpoint", source, "target"][..],
            &["copy", source, "target"],
            &["verify", source],
            &["digest", source],
            &["put", "file", "-p", "p", "k", "v"],
        ] {
            shell.run(args).fails_in_one_line(1, &[args[1]]);
        }
    }
    assert!(!shell.path("target").exists() && !shell.path("nothing").exists());
}

#[test]
fn half_a_keyspace_is_refused() {
    let shell = Shell::new();
    shell.store();
    fs::remove_file(shell.path("store/CATALOG")).unwrap();
    for args in [
        &["put", "store", "-p", "p", "k", "v"][..],
        &["digest", "store"],
        &["verify", "store"],
        &["copy", "store", "target"],
    ] {
        let ran = shell.run(args);
        assert!([1, 3].contains(&ran.code()), "{args:?}: {}", ran.stderr());
        ran.fails_in_one_line(ran.code(), &["store"]);
    }
}

#[test]
fn corruption_exits_with_3_and_names_the_file() {
    let shell = Shell::new();
    shell.store();
    shell.run(&["checkpoint", "store", "target", "--flush", "--copy", "-q"]).ok();
    let (path, content) = contents(&shell.path("target"))
        .into_iter()
        .filter(|(path, _)| path.parent().unwrap().ends_with("tables"))
        .max_by_key(|(_, content)| content.len())
        .expect("a flushed checkpoint has tables");
    let mut rotten = content;
    let middle = rotten.len() / 2;
    rotten[middle] ^= 1;
    fs::write(&path, rotten).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let verify = shell.run(&["verify", "target"]);
    verify.fails_in_one_line(3, &["target is corrupt: 1 problem found"]);
    assert!(verify.stdout().contains(name), "{}", verify.stdout());
    let verify = shell.run(&["verify", "target", "--json"]);
    assert_eq!(verify.code(), 3);
    let json: Value = serde_json::from_str(&verify.stdout()).unwrap();
    assert_eq!(json["sound"], false);
    assert!(json["problems"][0]["path"].as_str().unwrap().ends_with(name));
    shell.run(&["digest", "target"]).fails_in_one_line(3, &[]);
    shell.run(&["verify", "store"]).ok();
}

#[test]
fn what_is_open_elsewhere_exits_with_4_and_names_the_path() {
    let shell = Shell::new();
    shell.store();
    let open = Keyspace::open(shell.path("store")).unwrap();
    for args in [
        &["put", "store", "-p", "p", "k", "v"][..],
        &["remove", "store", "-p", "words", "hello"],
        &["load", "store", "-p", "p", "-f", "tsv"],
        &["get", "store", "-p", "words", "hello"],
        &["scan", "store", "-p", "words"],
        &["count", "store"],
        &["info", "store"],
        &["digest", "store"],
        &["checkpoint", "store", "target"],
        &["copy", "store", "target"],
        &["verify", "store"],
    ] {
        shell.run(args).fails_in_one_line(4, &["store", "open elsewhere"]);
    }
    open.close().unwrap();
    shell.run(&["verify", "store"]).ok();
    assert!(!shell.path("target").exists());
}

/// Whoever reads of the verbs finds them, in every build.
#[test]
fn conversions_say_if_this_program_cannot() {
    let shell = Shell::new();
    shell.store();
    let before = contents(&shell.path("store"));
    let why = if cfg!(feature = "fjall") {
        ["is not a fjall database", "missing"]
    } else {
        ["built without fjall", "--features fjall"]
    };
    shell.run(&["import-fjall", "store", "target"]).fails_in_one_line(1, &["store", why[0]]);
    shell.run(&["export-fjall", "missing", "target"]).fails_in_one_line(1, &["missing", why[1]]);
    for verb in ["import-fjall", "export-fjall"] {
        assert!(shell.run(&["--help"]).ok().contains(verb));
        assert!(shell.run(&[verb, "--help"]).ok().contains("0  done"));
        assert_eq!(shell.run(&[verb, "store"]).code(), 2);
    }
    assert_eq!(contents(&shell.path("store")), before);
    assert!(!shell.path("target").exists());
}

#[test]
fn a_service_checkpoints_while_open_and_the_program_reads_the_checkpoint() {
    let shell = Shell::new();
    let keyspace = Keyspace::open(shell.path("store")).unwrap();
    let partition = keyspace.partition("p", PartitionOptions::default()).unwrap();
    partition.insert("k", "v").unwrap();
    keyspace.backup_to(shell.path("target")).unwrap();
    assert_eq!(shell.run(&["get", "target", "-p", "p", "k"]).ok(), "v");
    shell.run(&["verify", "target"]).ok();
}

// ---- archive

#[cfg(not(feature = "archive"))]
#[test]
fn archives_say_if_this_program_cannot() {
    let shell = Shell::new();
    shell.run(&["archive", "list", "repo"]).fails_in_one_line(1, &["--features archive"]);
}

#[cfg(feature = "archive")]
mod archive {
    use super::*;

    #[track_caller]
    fn json(ran: &Ran) -> Value {
        serde_json::from_str(&ran.ok()).unwrap()
    }

    #[test]
    fn what_is_pushed_is_listed_checked_drilled_restored_and_pruned() {
        let shell = Shell::new();
        shell.store();
        let digest = shell.run(&["digest", "store"]).ok();
        assert!(shell.run(&["archive", "init", "repo"]).ok().starts_with("repository "));
        let pushed = json(&shell.run(&["archive", "push", "repo", "store", "--json"]));
        assert!(
            pushed["sent_bytes"].as_u64() > Some(0) && pushed["freeze_us"].as_f64() > Some(0.0)
        );
        shell.run(&["checkpoint", "store", "checkpoint"]).ok();
        let second = ["archive", "push", "repo", "checkpoint", "--label", "second", "--json"];
        let second = json(&shell.run(&second));
        assert_eq!(second["new_files"], 0);
        let listed = json(&shell.run(&["archive", "list", "repo", "--json"]));
        assert_eq!(listed[0]["backup"], pushed["backup"]);
        assert_eq!(
            (&listed[1]["label"], &listed[1]["pinned_bytes"]),
            (&"second".into(), &0.into())
        );
        assert_eq!(shell.run(&["archive", "list", "repo"]).ok().lines().count(), 3);
        assert!(shell.run(&["archive", "info", "repo"]).ok().contains("backups     2"));
        let name = second["backup"].as_str().unwrap();
        let info = shell.run(&["archive", "info", "repo", name]).ok();
        assert!(info.contains("partitions  numbers, words"), "{info}");
        for how in [&["--read-data"][..], &["--read-data=5%", "--seed", "1"], &[]] {
            let ran = shell.run(&[&["archive", "check", "repo"], how].concat()).ok();
            assert!(ran.contains("repo is sound: 2 backups"), "{ran}");
        }
        let all = "all data was proved within the last 1 day";
        for args in [&["archive", "info", "repo"][..], &["archive", "check", "repo"]] {
            let said = shell.run(args).ok();
            assert!(said.contains(all), "{said}");
        }
        let proofs = contents(&shell.path("repo/proofs"));
        let check = ["archive", "check", "repo", "--read-data", "--no-remember", "--json"];
        let checked = json(&shell.run(&check));
        assert_eq!(
            (&checked["remembered"], &checked["not_remembered"]),
            (&false.into(), &Value::Null)
        );
        assert_eq!(checked["proofs"]["never_proved_pieces"], 0);
        assert_eq!(contents(&shell.path("repo/proofs")), proofs);
        fs::write(&proofs[0].0, "rotten").unwrap();
        let said = shell.run(&["archive", "check", "repo"]).ok();
        assert!(
            said.contains("a proof is not believed") && said.contains("no data was ever"),
            "{said}"
        );
        let drill = shell.run(&["archive", "drill", "repo"]).ok();
        assert!(drill.starts_with(&digest), "{drill} {digest}");
        let restored = ["archive", "restore", "repo", "target", "--backup", name, "--json"];
        assert_eq!(json(&shell.run(&restored))["seqno"], second["seqno"]);
        assert_eq!(shell.run(&["digest", "target"]).ok(), digest);
        shell.run(&["verify", "target"]).ok();
        let one = ["archive", "restore", "repo", "one", "--partition", "words", "--quiet"];
        assert_eq!(shell.run(&one).ok(), "");
        assert_eq!(shell.run(&["count", "one"]).ok(), "words\t1\n");
        let prune = ["archive", "prune", "repo", "--keep-last", "1", "--keep-within", "0s"];
        let plan = shell.run(&[&prune[..], &["--dry-run"]].concat()).ok();
        assert!(
            plan.contains(&format!("remove  {}", pushed["backup"].as_str().unwrap())),
            "{plan}"
        );
        assert!(plan.contains("(label, last, within)") && plan.contains("would be"), "{plan}");
        let pruned = json(&shell.run(&[&prune[..], &["--json"]].concat()));
        assert_eq!(pruned["removed"].as_array().unwrap().len(), 1);
        assert_eq!(json(&shell.run(&["archive", "list", "repo", "--json"]))[0]["backup"], name);
        shell.run(&["archive", "check", "repo", "--read-data"]).ok();
        let left = fs::read_dir(shell.dir.path()).unwrap().map(|e| e.unwrap().file_name());
        let hidden = |name: &std::ffi::OsString| name.to_string_lossy().starts_with('.');
        assert_eq!(left.filter(hidden).count(), 0, "nothing stays behind");
    }

    #[test]
    fn the_key_comes_from_a_file_or_the_environment_and_no_other_opens() {
        let shell = Shell::new();
        shell.store();
        shell.run(&["archive", "keygen", "key"]).ok();
        shell.run(&["archive", "keygen", "other"]).ok();
        shell.run(&["archive", "keygen", "key"]).fails_in_one_line(1, &["create key", "exists"]);
        let key = fs::read_to_string(shell.path("key")).unwrap();
        let init = ["archive", "init", "repo"];
        assert_eq!(shell.run(&[&init[..], &["--encrypt"]].concat()).code(), 2);
        assert_eq!(shell.run(&[&init[..], &["--key-file", "key"]].concat()).code(), 2);
        assert!(!shell.path("repo").exists());
        let encrypted = [&init[..], &["--encrypt", "--key-file", "key"]].concat();
        assert!(shell.run(&encrypted).ok().contains("encrypted"));
        shell.run(&["archive", "push", "repo", "store", "--key-file", "key"]).ok();
        for (more, said) in [
            (&[][..], "no key was given"),
            (&["--key-file", "other"], "another key"),
            (&["--key-file", "store/CATALOG"], "key"),
            (&["--key-file", "nowhere"], "nowhere"),
        ] {
            let list = [&["archive", "list", "repo"], more].concat();
            let stderr = shell.run(&list).fails(1, &[said]);
            assert!(!stderr.contains(key.trim()), "{stderr}");
        }
        let mut command = shell.command(&["archive", "check", "repo", "--read-data"]);
        let output = command.env("ESKER_ARCHIVE_KEY", key).output().unwrap();
        Ran { args: "with a key".into(), output }.ok();
    }

    #[test]
    fn what_cannot_be_done_is_said_in_one_sentence() {
        let shell = Shell::new();
        shell.store();
        let before = contents(&shell.path("store"));
        for verb in ["list", "check", "drill"] {
            shell
                .run(&["archive", verb, "nowhere"])
                .fails_in_one_line(1, &["nowhere", "no repository"]);
            shell.run(&["archive", verb, "store"]).fails_in_one_line(1, &["has no REPOSITORY"]);
        }
        shell.run(&["archive", "push", "nowhere", "store"]).fails_in_one_line(1, &["nowhere"]);
        assert!(!shell.path("nowhere").exists());
        shell.run(&["archive", "init", "repo"]).ok();
        shell.run(&["archive", "init", "repo"]).fails_in_one_line(1, &["repository already"]);
        shell.run(&["archive", "restore", "repo", "target"]).fails_in_one_line(1, &["no backup"]);
        shell.run(&["archive", "push", "repo", "missing"]).fails(1, &["missing"]);
        shell.run(&["archive", "push", "repo", "store"]).ok();
        shell.run(&["archive", "restore", "repo", "store"]).fails_in_one_line(1, &["store exists"]);
        let unknown = ["archive", "restore", "repo", "target", "--partition", "nobody"];
        shell.run(&unknown).fails_in_one_line(1, &["nobody"]);
        assert_eq!(shell.run(&["archive", "prune", "repo"]).code(), 2);
        assert_eq!(shell.run(&["archive", "prune", "repo", "--keep-within", "30"]).code(), 2);
        assert_eq!(shell.run(&["archive", "check", "repo", "--read-data=5"]).code(), 2);
        let keyspace = Keyspace::open(shell.path("store")).unwrap();
        shell.run(&["archive", "push", "repo", "store"]).fails_in_one_line(4, &["store"]);
        keyspace.close().unwrap();
        assert!(contents(&shell.path("store")).len() >= before.len());
        assert!(!shell.path("target").exists());
    }

    #[test]
    fn of_several_keyspaces_the_newest_backup_is_not_guessed() {
        let shell = Shell::new();
        shell.store();
        shell.run(&["put", "other", "-p", "p", "k", "v"]).ok();
        shell.run(&["archive", "init", "repo"]).ok();
        let pushed = json(&shell.run(&["archive", "push", "repo", "store", "--json"]));
        shell.run(&["archive", "push", "repo", "other"]).ok();
        let restore = ["archive", "restore", "repo", "target"];
        shell.run(&restore).fails_in_one_line(1, &["several keyspaces", "--backup"]);
        let backup = ["--backup", pushed["backup"].as_str().unwrap()];
        shell.run(&[&restore[..], &backup].concat()).ok();
        let prune = ["archive", "prune", "repo", "--keep-last", "1", "--json"];
        assert_eq!(json(&shell.run(&prune))["kept"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn damage_in_a_repository_exits_with_3_and_names_object_and_backup() {
        let shell = Shell::new();
        let keyspace = Keyspace::open(shell.path("store")).unwrap();
        fill(&keyspace, 1);
        keyspace.close().unwrap();
        shell.run(&["archive", "init", "repo"]).ok();
        let pushed = json(&shell.run(&["archive", "push", "repo", "store", "--json"]));
        let (piece, mut bytes) = contents(&shell.path("repo/files"))
            .into_iter()
            .max_by_key(|(_, bytes)| bytes.len())
            .unwrap();
        bytes[100] ^= 1;
        fs::write(&piece, &bytes).unwrap();
        shell.run(&["archive", "check", "repo"]).ok();
        let object = piece.strip_prefix(shell.path("repo")).unwrap().display().to_string();
        let rotten = shell.run(&["archive", "check", "repo", "--read-data"]);
        rotten.fails_in_one_line(3, &["1 problem"]);
        let backup = pushed["backup"].as_str().unwrap();
        assert!(rotten.stdout().contains(&object) && rotten.stdout().contains(backup));
        shell.run(&["archive", "restore", "repo", "target"]).fails_in_one_line(3, &[&object]);
        assert!(!shell.path("target").exists());
        fs::remove_file(&piece).unwrap();
        let missing = shell.run(&["archive", "check", "repo", "--json"]);
        missing.fails_in_one_line(3, &["1 problem"]);
        let report: Value = serde_json::from_str(&missing.stdout()).unwrap();
        assert_eq!(report["problems"][0]["object"], object);
        assert_eq!(report["problems"][0]["what"], "is missing");
        shell.run(&["archive", "drill", "repo"]).fails_in_one_line(3, &[&object, "missing"]);
    }

    /// So many MiB that do not compress.
    fn fill(keyspace: &Keyspace, mib: u32) {
        let partition = keyspace.partition("p", PartitionOptions::default()).unwrap();
        let mut state = 7_u64;
        for key in 0..mib {
            let step = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            };
            let value: Vec<u8> = (0..1 << 20).map(step).collect();
            partition.insert(key.to_be_bytes(), value).unwrap();
        }
        keyspace.flush().unwrap();
    }

    #[test]
    fn a_restore_that_was_interrupted_goes_on() {
        let shell = Shell::new();
        let keyspace = Keyspace::open(shell.path("store")).unwrap();
        fill(&keyspace, 96);
        keyspace.close().unwrap();
        shell.run(&["archive", "init", "repo"]).ok();
        shell.run(&["archive", "push", "repo", "store"]).ok();
        let restore = [
            "archive",
            "restore",
            "repo",
            "target",
            "--workers",
            "1",
            "--chunk-mib",
            "1",
            "--json",
        ];
        let mut command = shell.command(&restore);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let record = || {
            let mut entries = fs::read_dir(shell.dir.path()).unwrap().map(|e| e.unwrap().path());
            let unfinished = entries.find(|path| {
                path.file_name().unwrap().to_string_lossy().starts_with(".target.esker-restore")
            })?;
            fs::metadata(unfinished.join(".esker-restore")).ok().map(|record| record.len())
        };
        let began = Instant::now();
        while record().unwrap_or(0) < 4 * 12 {
            assert!(began.elapsed() < Duration::from_secs(60) && !shell.path("target").exists());
        }
        let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(interrupt.unwrap().success());
        assert_eq!(child.wait().unwrap().code(), None, "it was interrupted");
        assert!(!shell.path("target").exists());
        let report = json(&shell.run(&restore));
        let resumed = report["resumed_bytes"].as_u64().unwrap();
        assert!(resumed >= 4 << 20, "{report}");
        assert!(report["fetched_bytes"].as_u64().unwrap() < (97 << 20) - resumed, "{report}");
        shell.run(&["verify", "target"]).ok();
        assert_eq!(shell.run(&["count", "target"]).ok(), "p\t96\n");
        assert_eq!(record(), None, "nothing is left of it");
    }
}

// ---- demo

#[test]
fn the_demo_proves_itself_and_leaves_nothing_behind() {
    let shell = Shell::new();
    let tour = shell.run(&["demo", "--seconds", "1"]).ok();
    for row in ["ratio", "freeze p50 / p99 / max", "linked", "all equal", "all sound"] {
        assert!(tour.contains(row), "{row} is not in {tour}");
    }
    assert_eq!(shell.dir.path().read_dir().unwrap().count(), 0, "something was left behind");
}

#[test]
fn the_demo_keeps_a_directory_it_was_given_and_refuses_one_in_use() {
    let shell = Shell::new();
    assert_eq!(shell.run(&["demo", "-q", "--seconds", "1", "--threads", "3", "tour"]).ok(), "");
    let keyspace = shell.run(&["digest", "tour/keyspace"]).ok();
    assert_eq!(shell.run(&["digest", "tour/copy"]).ok(), keyspace);
    assert!(keyspace.starts_with("events\t"), "{keyspace}");
    shell.run(&["demo", "tour"]).fails_in_one_line(1, &["tour is not empty"]);
}

#[test]
fn the_demo_fails_loudly_when_a_checkpoint_holds_anything_else() {
    let shell = Shell::new();
    let mut demo = shell.command(&["demo", "-q", "--seconds", "1", "tour"]);
    let child = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The second checkpoint is the last; the tour writes on for more than a second after it.
    let [first, second, aside] =
        ["checkpoint-001", "checkpoint-002", "aside"].map(|name| shell.path("tour").join(name));
    let end = Instant::now() + Duration::from_secs(60);
    while !second.exists() {
        assert!(Instant::now() < end, "there was no second checkpoint");
        std::thread::sleep(Duration::from_millis(10));
    }
    for (from, to) in [(&first, &aside), (&second, &first), (&aside, &second)] {
        fs::rename(from, to).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let demo = Ran { args: "demo".to_owned(), output };
    let words = ["differs from what was committed", "partition", "key", "expected", "found"];
    demo.fails_in_one_line(1, &words);
}
