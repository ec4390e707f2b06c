//! A worker as a process: started, listened to, killed or waited for, never longer than asked.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::said::Said;
use super::worker::Work;
use crate::chaos::Rng;

/// Longest wait for a worker that opens.
const OPENING_LIMIT: Duration = Duration::from_secs(30);
/// How often the parent looks.
const LOOK: Duration = Duration::from_millis(1);

/// A worker that runs; dropping it kills it.
pub struct Running {
    child: Child,
    said: Arc<Mutex<Said>>,
    reader: Option<JoinHandle<()>>,
    errors: Option<JoinHandle<String>>,
}

/// A worker that does not run any more.
#[derive(Debug)]
pub struct Finished {
    pub said: Said,
    pub status: ExitStatus,
    /// It did not end in time and was killed for that.
    pub hung: bool,
    pub stderr: String,
}

impl Running {
    /// Starts a worker to be disturbed: mostly it has opened the keyspace when this returns, and one
    /// time in five not yet.
    pub fn start_for_disturbance(work: &Work, rng: &mut Rng) -> Result<Self, String> {
        let mut running = Self::start(work.command()).map_err(|e| format!("start: {e}"))?;
        if !rng.one_in(5) {
            running.wait_until(OPENING_LIMIT, |said| said.ready);
        }
        Ok(running)
    }

    /// Starts the command as the leader of a process group, so that a tracer dies with its tracee.
    pub fn start(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.process_group(0).spawn()?;
        let said = Arc::new(Mutex::new(Said::default()));
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let reader = out.map(|out| {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    lock(&said).hear(&line);
                }
            })
        });
        let errors = err.map(|mut err| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // What cannot be read is not shown; the status still tells.
                let _ = err.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        Ok(Self { child, said, reader, errors })
    }

    /// What was heard up to now.
    pub fn said(&self) -> Said {
        lock(&self.said).clone()
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `reached` holds; false when the worker ended before or time ran out.
    pub fn wait_until(&mut self, limit: Duration, reached: impl Fn(&Said) -> bool) -> bool {
        let began = Instant::now();
        loop {
            if reached(&lock(&self.said)) {
                return true;
            }
            if began.elapsed() > limit || !self.is_alive() {
                return reached(&lock(&self.said));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Kills it (SIGKILL).
    pub fn kill(mut self) -> io::Result<Finished> {
        self.end(false)
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self, limit: Duration) -> io::Result<Finished> {
        let began = Instant::now();
        while self.is_alive() && began.elapsed() < limit {
            std::thread::sleep(LOOK);
        }
        let hung = self.is_alive();
        self.end(hung)
    }

    fn end(&mut self, hung: bool) -> io::Result<Finished> {
        self.kill_group();
        let status = self.child.wait()?;
        let stderr = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
        if let Some(reader) = self.reader.take() {
            // It ends with the pipe.
            let _ = reader.join();
        }
        Ok(Finished { said: self.said(), status, hung, stderr })
    }

    fn kill_group(&mut self) {
        // A process that was waited for has left its number to others.
        if self.is_alive() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
        let _ = self.child.wait();
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}
