//! Who owns a task: everything that a node runs ends with the node.
//!
//! [`Tasks`] owns: dropping or stopping it aborts every task that was spawned through it, those of the scopes
//! opened below it included. [`Spawner`] is the handle to pass around: it spawns, and keeps nothing alive. What is
//! spawned after the end is dropped at once, so that a late message cannot wake a dead node.
//!
//! A task that panics may leave half of something behind. [`Tasks::watched`] tells its node, which ends: a node that is
//! half alive is worse than one that is gone.
//!
//! Nobody else calls `tokio::spawn`. A simulation hands in a wrapper that runs each task as a task of its node.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::Notify, task::AbortHandle};

/// Puts a task into the context of its node; for simulations.
pub type Wrapper = Arc<dyn Fn(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Hears of a task that panicked: its name, and what it said. It must not panic.
pub type OnPanic = Arc<dyn Fn(&'static str, &str) + Send + Sync>;

/// Owns the tasks that were spawned through its [`Spawner`]s. Dropping it aborts them.
pub struct Tasks {
    inner: Arc<Inner>,
}

/// Spawns tasks that somebody else owns.
#[derive(Clone)]
pub struct Spawner {
    inner: Arc<Inner>,
}

struct Inner {
    name: &'static str,
    wrapper: Option<Wrapper>,
    on_panic: Option<OnPanic>,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Default)]
struct State {
    stopped: bool,
    next_task: u64,
    /// The handle is `None` while the task is being spawned.
    tasks: BTreeMap<u64, (&'static str, Option<AbortHandle>)>,
    scopes: Vec<Weak<Inner>>,
}

impl Tasks {
    /// Owner of the tasks of `name`.
    pub fn new(name: &'static str) -> Self {
        Self::with(name, None, None)
    }

    /// The same, and `on_panic` hears of each task that panics, those of the scopes below included.
    pub fn watched(name: &'static str, on_panic: OnPanic) -> Self {
        Self::with(name, None, Some(on_panic))
    }

    /// The same, with every task passed through `wrapper` first.
    pub fn wrapped(name: &'static str, wrapper: Wrapper) -> Self {
        Self::with(name, Some(wrapper), None)
    }

    fn with(name: &'static str, wrapper: Option<Wrapper>, on_panic: Option<OnPanic>) -> Self {
        let inner = Inner { name, wrapper, on_panic, state: Mutex::default(), ended: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// A handle that spawns tasks of this owner.
    pub fn spawner(&self) -> Spawner {
        Spawner { inner: self.inner.clone() }
    }

    /// Aborts all tasks, and drops what is spawned from now on. They end at their next await.
    pub fn stop(&self) {
        self.inner.stop();
    }

    /// Stops, and waits until every task is gone and has dropped what it held.
    pub async fn shutdown(self) {
        self.inner.stop();
        self.inner.gone().await;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.inner.stop();
    }
}

impl Spawner {
    /// Runs `future` until it ends or its owner stops. After that it is dropped unpolled.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let Some(guard) = Guard::enter(&self.inner, name) else { return };
        let id = guard.id;
        let on_panic = self.inner.on_panic.clone();
        let future = async move {
            let _guard = guard;
            let Some(on_panic) = on_panic else { return future.await };
            // Whatever it left half done is not looked at again: the node ends.
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                on_panic(name, said(panic.as_ref()));
                resume_unwind(panic);
            }
        };
        let handle = match &self.inner.wrapper {
            None => tokio::spawn(future),
            Some(wrapper) => tokio::spawn(wrapper(Box::pin(future))),
        };
        self.inner.adopt(id, handle.abort_handle());
    }

    /// Opens a scope: tasks that end with the returned owner, or with this one, whichever is first.
    pub fn scope(&self, name: &'static str) -> Tasks {
        let tasks = Tasks::with(name, self.inner.wrapper.clone(), self.inner.on_panic.clone());
        let mut state = self.inner.state();
        if state.stopped {
            drop(state);
            tasks.stop();
        } else {
            state.scopes.retain(|scope| scope.strong_count() > 0);
            state.scopes.push(Arc::downgrade(&tasks.inner));
        }
        tasks
    }

    /// The names of the tasks that run now, those of open scopes included.
    pub fn running(&self) -> Vec<&'static str> {
        self.inner.running()
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it did not say why")
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopt(&self, id: u64, handle: AbortHandle) {
        let mut state = self.state();
        let stopped = state.stopped;
        if let Some((_, slot)) = state.tasks.get_mut(&id) {
            if stopped {
                handle.abort();
            }
            *slot = Some(handle);
        }
    }

    fn stop(&self) {
        let (handles, scopes) = {
            let mut state = self.state();
            state.stopped = true;
            let handles: Vec<_> = state.tasks.values().filter_map(|(_, handle)| handle.clone()).collect();
            (handles, state.scopes.clone())
        };
        handles.iter().for_each(AbortHandle::abort);
        scopes.iter().filter_map(Weak::upgrade).for_each(|scope| scope.stop());
    }

    async fn gone(&self) {
        loop {
            let ended = self.ended.notified();
            if self.state().tasks.is_empty() {
                break;
            }
            ended.await;
        }
        let scopes = self.state().scopes.clone();
        for scope in scopes {
            if let Some(scope) = scope.upgrade() {
                Box::pin(scope.gone()).await;
            }
        }
    }

    fn running(&self) -> Vec<&'static str> {
        let (mut names, scopes) = {
            let state = self.state();
            (state.tasks.values().map(|(name, _)| *name).collect::<Vec<_>>(), state.scopes.clone())
        };
        for scope in scopes.iter().filter_map(Weak::upgrade) {
            names.extend(scope.running());
        }
        names
    }
}

/// Strikes its task off the list, however the task ends.
struct Guard {
    inner: Arc<Inner>,
    id: u64,
}

impl Guard {
    fn enter(inner: &Arc<Inner>, name: &'static str) -> Option<Self> {
        let mut state = inner.state();
        if state.stopped {
            return None;
        }
        let id = state.next_task;
        state.next_task += 1;
        state.tasks.insert(id, (name, None));
        Some(Self { inner: inner.clone(), id })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.inner.state().tasks.remove(&self.id);
        self.inner.ended.notify_waiters();
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tasks({})", self.inner.name)
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Spawner({})", self.inner.name)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc};

    use super::*;

    #[tokio::test]
    async fn dropping_the_owner_ends_tasks_and_scopes() {
        let held = Arc::new(());
        let tasks = Tasks::new("node");
        let spawner = tasks.spawner();
        let scope = spawner.scope("inner");
        for spawner in [spawner.clone(), scope.spawner()] {
            let held = held.clone();
            spawner.spawn("holder", async move {
                let _held = held;
                pending::<()>().await;
            });
        }
        assert_eq!(spawner.running(), ["holder", "holder"]);
        tasks.shutdown().await;
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(spawner.running().is_empty());
    }

    #[tokio::test]
    async fn a_stopped_owner_drops_what_it_is_given() {
        let tasks = Tasks::new("node");
        let spawner = tasks.spawner();
        drop(tasks);
        let held = Arc::new(());
        let inside = held.clone();
        spawner.spawn("late", async move { drop(inside) });
        assert_eq!(Arc::strong_count(&held), 1);
        spawner.scope("late").spawner().spawn("later", async { unreachable!("spawned after the end") });
        assert!(spawner.running().is_empty());
    }

    #[tokio::test]
    async fn a_task_that_ends_is_forgotten() {
        let tasks = Tasks::new("node");
        let (send, receive) = tokio::sync::oneshot::channel::<()>();
        tasks.spawner().spawn("short", async move { drop(send) });
        assert!(receive.await.is_err());
        tasks.inner.gone().await;
        assert!(tasks.spawner().running().is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_told_to_whoever_watches_whatever_scope_it_is_in() {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let on_panic: OnPanic =
            Arc::new(move |task, said| tell.send((task, said.to_owned())).expect("the test listens"));
        let tasks = Tasks::watched("node", on_panic);
        let scope = tasks.spawner().scope("inner");
        scope.spawner().spawn("sound", async {});
        tasks.spawner().spawn("outer task", async { panic!("that was {}", "unexpected") });
        assert_eq!(told.recv().await, Some(("outer task", "that was unexpected".to_owned())));
        scope.spawner().spawn("inner task", async { panic!("oops") });
        assert_eq!(told.recv().await, Some(("inner task", "oops".to_owned())));
        tasks.inner.gone().await;
        assert!(tasks.spawner().running().is_empty());
    }
}
