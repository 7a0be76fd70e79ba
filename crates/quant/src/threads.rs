//! Work on large tensors with all threads of the machine, or with this one where no others can be had.

/// Does every task once, with as many threads as there are.
///
/// The threads are this crate's own. Where the system grants none (a limit of processes or of address space)
/// the calling thread does everything: nothing fails for want of threads, as rayon's own pool would.
#[cfg(feature = "parallel")]
pub fn each<T: Send>(tasks: impl Iterator<Item = T>, work: impl Fn(T) + Send + Sync) {
    use rayon::prelude::*;
    let tasks: Vec<T> = tasks.collect();
    match pool().filter(|_| tasks.len() > 1) {
        Some(pool) => pool.install(|| tasks.into_par_iter().for_each(work)),
        None => tasks.into_iter().for_each(work),
    }
}

/// Does every task once.
#[cfg(not(feature = "parallel"))]
pub fn each<T: Send>(tasks: impl Iterator<Item = T>, work: impl Fn(T) + Send + Sync) {
    tasks.for_each(work);
}

/// The threads, started when they are first asked for; fewer where the system grants no more.
#[cfg(feature = "parallel")]
fn pool() -> Option<&'static rayon::ThreadPool> {
    use std::sync::OnceLock;
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let start = |threads: usize| {
        let named = rayon::ThreadPoolBuilder::new().thread_name(|index| format!("halfbyte-{index}"));
        named.num_threads(threads).build().ok()
    };
    POOL.get_or_init(|| {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        // Alone, the calling thread does as well.
        let fewer = std::iter::successors(Some(all), |threads| Some(threads / 2));
        fewer.take_while(|&threads| threads > 1).find_map(start)
    })
    .as_ref()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_task_is_done_once() {
        for count in [0, 1, 2, 1000] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            super::each(0..count, |at| {
                done[at].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|one| one.load(Ordering::Relaxed) == 1), "{count}");
        }
    }
}
