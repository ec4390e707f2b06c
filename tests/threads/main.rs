//! The commit path under schedules that nobody would meet by chance: loom goes through every
//! interleaving of three threads, shuttle through random ones of five and six.
//!
//! Each exploration is a process of its own, so that a bug can be planted for it alone, and a
//! deadlock or a panic in the wrong place ends it and nothing else. What is explored is the engine's
//! own source: see `engine.rs`; what the threads do is in `scenarios.rs`, what must hold in `world.rs`.

use std::process::{Command, Output};

use esker_tests::chaos;

/// Schedules of one scenario by shuttle, by default.
const ROUNDS: u64 = 400;

fn loom(scenario: &str, bug: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threads-loom"));
    command.arg(scenario).args(bug).output().expect("the explorer runs")
}

fn shuttle(scenario: &str, rounds: u64, bug: Option<&str>) -> Output {
    let seed = chaos::seed(scenario).to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_threads-shuttle"));
    command.args([scenario, &seed, &rounds.to_string()]).args(bug);
    command.output().expect("the explorer runs")
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

fn passes(output: &Output) {
    let text = text(output);
    assert!(output.status.success(), "{text}");
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
}

/// Both explorers agree with the scenario.
fn explored(scenario: &str) {
    passes(&loom(scenario, None));
    passes(&shuttle(scenario, chaos::rounds(ROUNDS), None));
}

/// For what loom cannot follow: its mutexes do not survive a panic, and its `unpark` also wakes who
/// waits for a mutex.
fn explored_by_shuttle(scenario: &str) {
    passes(&shuttle(scenario, chaos::rounds(10 * ROUNDS), None));
}

/// Both explorers find the bug, and by one of `symptoms`.
fn found(bug: &str, scenario: &str, symptoms: &[&str]) {
    for (explorer, output) in [
        ("loom", loom(scenario, Some(bug))),
        ("shuttle", shuttle(scenario, chaos::rounds(ROUNDS).max(ROUNDS), Some(bug))),
    ] {
        let text = text(&output);
        assert!(!output.status.success(), "{explorer} has not found {bug}: {text}");
        let known = symptoms.iter().any(|symptom| text.contains(symptom));
        assert!(known, "{explorer} found something else than {symptoms:?}: {text}");
    }
}

#[test]
fn the_queue_answers_every_thread_in_every_interleaving_of_three() {
    explored("queue");
}

#[test]
fn the_queue_hands_over_in_every_interleaving_of_three() {
    explored("queue-hand-over");
}

#[test]
fn commits_of_three_threads_are_numbered_without_gaps_and_answered_once_they_are_visible() {
    explored("commits");
}

#[test]
fn the_lead_is_handed_over_and_nobody_is_left_waiting() {
    explored("hand-over");
}

#[test]
fn a_freeze_holds_whole_groups_everything_answered_before_it_and_nothing_after() {
    explored("freeze");
}

#[test]
fn two_freezes_at_once_each_hold_one_moment() {
    explored("two-freezes");
}

#[test]
fn a_batch_beside_a_drop_is_whole_or_refused() {
    explored("drop");
}

#[test]
fn a_durable_member_is_answered_after_the_sync_that_covers_it() {
    explored("durable-and-buffered");
}

#[test]
fn nothing_succeeds_or_becomes_visible_after_a_failed_sync() {
    explored("failed-sync");
}

#[test]
fn a_group_that_finds_no_space_leaves_no_trace() {
    explored("no-space");
}

#[test]
fn a_panic_of_the_leader_answers_everybody_with_one_cause() {
    explored("panic");
}

#[test]
fn close_answers_everybody_and_loses_nothing_that_was_accepted() {
    explored("close");
}

#[test]
fn a_merge_never_passes_a_live_snapshot() {
    explored("snapshot");
}

#[test]
fn a_segment_is_swapped_sealed_and_persisted_by_three_threads_at_once() {
    explored("swap-and-persist");
}

#[test]
fn what_waits_to_be_applied_is_found_by_readers_and_applied_once() {
    explored("deferred");
}

#[test]
fn nothing_waits_to_be_applied_between_groups() {
    explored("deferred-seal");
}

#[test]
fn leaders_that_wait_for_company_answer_everybody_in_every_interleaving_of_three() {
    explored("queue-long");
}

#[test]
fn what_panics_when_it_is_applied_later_is_never_visible() {
    explored_by_shuttle("deferred-panic");
}

#[test]
fn close_loses_nothing_that_waits_to_be_applied() {
    explored_by_shuttle("deferred-close");
}

#[test]
fn transactions_that_count_up_one_key_lose_no_update() {
    explored("optimistic");
}

#[test]
fn nor_do_they_where_commits_wait_to_be_applied() {
    explored("optimistic-deferred");
}

#[test]
fn an_update_that_is_lost_because_changes_are_not_noted_is_found() {
    found("ChangesNotNoted", "optimistic", &["a lost update"]);
}

#[test]
fn an_update_that_is_lost_because_it_was_forgotten_is_found() {
    found("OpenTransactionsForgotten", "optimistic", &["a lost update"]);
}

#[test]
fn a_deferred_commit_that_readers_are_not_told_of_is_found() {
    found("DeferredNotNoted", "deferred", &["answered, "]);
}

#[test]
fn a_seal_while_commits_wait_is_found() {
    found("NotSettled", "deferred-seal", &["between groups"]);
}

#[test]
fn a_lost_wake_up_is_found() {
    found("NotifyLost", "commits", &["deadlock"]);
}

#[test]
fn a_lost_hand_over_is_found() {
    found("HandOverLost", "hand-over", &["deadlock"]);
}

#[test]
fn an_answer_before_the_batch_is_applied_is_found() {
    found("AnsweredBeforeApplied", "commits", &["was answered, not"]);
}

#[test]
fn an_answer_before_the_sync_is_found() {
    // Such an answer comes before the group is visible, too.
    let symptoms = ["was answered, durable up to", "was answered, not visible"];
    found("AnsweredBeforeSync", "durable-and-buffered", &symptoms);
}

#[test]
fn a_freeze_inside_a_group_is_found() {
    found("FreezeInsideAGroup", "freeze", &["between groups", "a freeze holds"]);
}
