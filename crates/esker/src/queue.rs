//! The queue in front of the journal: who leads, what makes a group, and that everybody is answered.
//!
//! Who finds nobody leading serves its own job at once, without a request that others could see: the
//! usual case where few threads write. Who waits first looks, then lets others run, then sleeps: a
//! wake-up costs more than a commit that needs no sync.
//!
//! What must stay true:
//! - One thread leads at a time. The lead is taken, or passed on, under the lock of the queue, so
//!   that nobody who joins can be overlooked.
//! - Groups are served in the order in which their members joined.
//! - Everybody who joined is answered exactly once, also when a leader panics: then with the cause
//!   that refuses everything from there on.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::planted::{Bug, is_planted};
use crate::sync::{
    AtomicU8, Mutex, MutexGuard, Ordering, Thread, current, park, spin_loop, yield_now,
};

const WAITING: u8 = 0;
const LEAD: u8 = 1;
const DONE: u8 = 2;

/// How much a leader does at once, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A group takes no more than this; the rest is the next group's.
    pub(crate) group_bytes_max: usize,
    pub(crate) group_len_max: usize,
    /// A leader serves so many groups beyond its own before it hands over: a hand-over costs a
    /// wake-up, a leader kept longer costs its own caller.
    pub(crate) extra_groups: usize,
    /// Who waits looks at the outcome this often before letting others run.
    pub(crate) spins: usize,
    /// Who waits lets others run this often before going to sleep: about as long as a quick disk takes
    /// to sync.
    pub(crate) yields: usize,
    /// A leader that is about to sync lets others run as long as some of them join, and this often
    /// without that.
    pub(crate) idle_yields: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            group_bytes_max: 4 << 20,
            group_len_max: 256,
            extra_groups: 4,
            spins: 60,
            yields: 100,
            idle_yields: 4,
        }
    }
}

/// What is done with a group, by the thread that leads.
pub(crate) trait Serve: Sized {
    type Job;

    /// The size of a job that shares its group with others; `None`: it is served alone.
    fn shared_bytes(job: &Self::Job) -> Option<usize>;

    /// Whether it takes so long that it pays to wait for company.
    fn is_long(job: &Self::Job) -> bool;

    /// Serves a job of the calling thread that nobody shares.
    fn serve_alone(&self, job: Self::Job) -> Result<u64>;

    /// Serves jobs that joined one after the other, and answers each.
    fn serve(&self, group: Vec<Member<'_, Self>>);

    /// Refuses everything from here on, because a leader panicked; what to answer.
    fn panicked(&self) -> Error;
}

struct Request<J> {
    state: AtomicU8,
    job: Mutex<Option<J>>,
    outcome: Mutex<Option<Result<u64>>>,
    thread: Thread,
}

struct State<J> {
    waiting: VecDeque<Arc<Request<J>>>,
    led: bool,
    /// The size of the last group that took long, until it is known who joined meanwhile.
    last_long: usize,
    /// Those together: how many threads there are that want something long.
    company: usize,
}

pub(crate) struct Queue<J> {
    state: Mutex<State<J>>,
    limits: Limits,
}

impl<J> State<J> {
    /// Behind a long group, before those who were in it come back.
    fn count_company(&mut self) {
        if self.last_long > 0 {
            self.company = std::mem::take(&mut self.last_long) + self.waiting.len();
        }
    }
}

impl<J> Queue<J> {
    pub(crate) fn new(limits: Limits) -> Self {
        let state = State { waiting: VecDeque::new(), led: false, last_long: 0, company: 0 };
        Self { state: Mutex::new(state), limits }
    }

    /// Joins the queue and returns the answer to `job`. This thread serves groups itself if nobody
    /// else does.
    pub(crate) fn submit<S: Serve<Job = J>>(&self, server: &S, job: J) -> Result<u64> {
        let long = S::is_long(&job);
        if self.try_lead(long) {
            let mut guard = LeadGuard { queue: self, server, finished: false };
            let outcome = server.serve_alone(job);
            if long {
                self.state.lock().last_long = 1;
            }
            self.lead(&mut guard, || true);
            return outcome;
        }
        let request = Arc::new(Request {
            state: AtomicU8::new(WAITING),
            job: Mutex::new(Some(job)),
            outcome: Mutex::new(None),
            thread: current(),
        });
        let lead = {
            let mut queue = self.state.lock();
            queue.waiting.push_back(Arc::clone(&request));
            !std::mem::replace(&mut queue.led, true)
        };
        if lead || request.wait(self.limits) == LEAD {
            let mut guard = LeadGuard { queue: self, server, finished: false };
            self.lead(&mut guard, || request.state.load(Ordering::Acquire) == DONE);
        }
        let outcome = request.outcome.lock().take();
        outcome.expect("a request that is done has an outcome")
    }

    /// Takes the lead if nobody has it, for a job that need not wait for others.
    fn try_lead(&self, long: bool) -> bool {
        let mut queue = self.state.lock();
        if queue.led || long && queue.company > 1 {
            return false;
        }
        queue.led = true;
        true
    }

    /// Serves groups until the own request is `done` and the lead is passed on.
    fn lead<S: Serve<Job = J>>(&self, guard: &mut LeadGuard<'_, S>, done: impl Fn() -> bool) {
        let mut extra = 0;
        loop {
            if done() {
                let mut queue = self.state.lock();
                let long = queue.last_long > 0;
                queue.count_company();
                if queue.waiting.is_empty() {
                    queue.led = false;
                    break;
                }
                // Kept from joining, this thread would be missed in a long group.
                if long || extra >= self.limits.extra_groups {
                    let next = Arc::clone(&queue.waiting[0]);
                    drop(queue);
                    if !is_planted(Bug::HandOverLost) {
                        next.signal(LEAD);
                    }
                    break;
                }
                extra += 1;
            }
            let group = self.take_group(guard.server);
            guard.server.serve(group);
        }
        guard.finished = true;
    }

    /// The next job that is served alone, or the jobs up to it or to the limits.
    fn take_group<'a, S: Serve<Job = J>>(&self, server: &'a S) -> Vec<Member<'a, S>> {
        let Limits { group_bytes_max, group_len_max, .. } = self.limits;
        let mut queue = self.gather::<S>();
        let mut group = Vec::with_capacity(queue.waiting.len().min(group_len_max));
        let (mut bytes, mut long) = (0, false);
        while let Some(front) = queue.waiting.front() {
            let (shared, takes_long) = {
                let job = front.job.lock();
                let job = job.as_ref();
                (job.and_then(S::shared_bytes), job.is_some_and(S::is_long))
            };
            let len = shared.unwrap_or(0);
            let full = bytes + len > group_bytes_max || group.len() >= group_len_max;
            if !group.is_empty() && (shared.is_none() || full) {
                break;
            }
            bytes += len;
            long |= takes_long;
            group.extend(queue.waiting.pop_front().map(|request| Member { request, server }));
            if shared.is_none() {
                break;
            }
        }
        queue.last_long = if long { group.len() } else { 0 };
        group
    }

    /// Lets those join who were in the last long group and are about to come back, before the next
    /// long one begins: without, half of them would find it gone, and wait for all of it.
    fn gather<S: Serve<Job = J>>(&self) -> MutexGuard<'_, State<J>> {
        let mut queue = self.state.lock();
        let front = queue.waiting.front().map(Arc::clone);
        if !front.is_some_and(|front| front.job.lock().as_ref().is_some_and(S::is_long)) {
            return queue;
        }
        queue.count_company();
        let mut idle = 0;
        while queue.waiting.len() < queue.company && idle < self.limits.idle_yields {
            let before = queue.waiting.len();
            drop(queue);
            yield_now();
            queue = self.state.lock();
            idle = if queue.waiting.len() > before { 0 } else { idle + 1 };
        }
        queue
    }
}

/// If the leader panics nobody must wait for ever: what is queued fails, and so does what follows.
struct LeadGuard<'a, S: Serve> {
    queue: &'a Queue<S::Job>,
    server: &'a S,
    finished: bool,
}

impl<S: Serve> Drop for LeadGuard<'_, S> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let error = self.server.panicked();
        let mut queue = self.queue.state.lock();
        queue.led = false;
        for request in queue.waiting.drain(..) {
            request.finish(Err(error.clone()));
        }
    }
}

/// A request that somebody waits for: answered at the latest when it is dropped.
pub(crate) struct Member<'a, S: Serve> {
    request: Arc<Request<S::Job>>,
    server: &'a S,
}

impl<S: Serve> Member<'_, S> {
    /// The job, once.
    pub(crate) fn take_job(&self) -> Option<S::Job> {
        self.request.job.lock().take()
    }

    pub(crate) fn finish(&self, outcome: Result<u64>) {
        self.request.finish(outcome);
    }
}

impl<S: Serve> Drop for Member<'_, S> {
    fn drop(&mut self) {
        if self.request.state.load(Ordering::Acquire) != DONE {
            // First refuse, then answer: who hears of the panic must not be accepted again.
            let error = self.server.panicked();
            self.finish(Err(error));
        }
    }
}

impl<J> Request<J> {
    fn finish(&self, outcome: Result<u64>) {
        *self.outcome.lock() = Some(outcome);
        self.signal(DONE);
    }

    fn signal(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        if state == DONE && is_planted(Bug::NotifyLost) {
            return;
        }
        self.thread.unpark();
    }

    fn wait(&self, Limits { spins, yields, .. }: Limits) -> u8 {
        for look in 0.. {
            match self.state.load(Ordering::Acquire) {
                WAITING if look < spins => spin_loop(),
                WAITING if look < spins + yields => yield_now(),
                WAITING => park(),
                state => return state,
            }
        }
        unreachable!("somebody answers")
    }
}
