//! The program `esker` over `s3://`, as its users start it: everything it needs is in the environment.

use std::path::Path;
use std::process::{Command, Output};

use esker_tests::archive::s3::{ACCESS_KEY, BUCKET, S3, SECRET_KEY};
use esker_tests::store::open_content;
use esker_tests::{Store, fill};

use crate::scene::assert_silent;

struct Program {
    s3: S3,
    secret: &'static str,
}

impl Program {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esker-with-fjall"));
        let endpoint = format!("http://{}", self.s3.address());
        let variables = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", self.secret),
        ];
        command.env_clear().envs(variables).arg("archive").args(arguments);
        command.output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (out, err) = (said(&output.stdout), said(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        assert_silent(&format!("{out}{err}"));
        out
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_program_keeps_backups_on_s3() {
    let mut program = Program { s3: S3::start(), secret: SECRET_KEY };
    let mut store = Store::new();
    fill(&store.partition("users"), 3_000);
    store.keyspace().flush().unwrap();
    let content = store.content();
    store.close();
    let (repository, keyspace) = (format!("s3://{BUCKET}/of/the/program"), store.path());
    program.succeed(&["init", &repository]);
    program.succeed(&["push", &repository, text(&keyspace), "--label", "first"]);
    let listed = program.succeed(&["list", &repository, "--json"]);
    assert!(listed.contains("\"first\""), "{listed}");
    program.succeed(&["check", &repository]);
    let target = store.beside("restored");
    program.succeed(&["restore", &repository, text(&target)]);
    assert_eq!(open_content(&target), content);
    program.succeed(&["prune", &repository, "--keep-last", "1"]);
    program.secret = "a-secret-that-is-wrong";
    let refused = program.run(&["list", &repository]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("REPOSITORY"), "{said}");
    assert_silent(&said);
    assert!(!said.contains(program.secret), "{said}");
}
