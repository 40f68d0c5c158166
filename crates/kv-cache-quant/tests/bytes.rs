//! The byte report against the allocator.

mod common;

use common::*;
use kv_cache_quant::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test alone in this file, so that nobody else allocates meanwhile.
#[test]
fn the_report_is_what_the_allocator_saw() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        for case in cases() {
            let g = geometry(64);
            let data = rows(g, 500, 50);
            let mut cache = (case.make)(g, KeyStorage::PostRope, case.policy);
            let static_bytes = cache.bytes().auxiliary;
            let empty = HELD.load(Ordering::Relaxed);
            for tokens in [1, 2, 30, 63, 64, 65, 130, 500] {
                let from = cache.len();
                append(&mut cache, &data, from..tokens);
                let held = (HELD.load(Ordering::Relaxed) - empty) as u64 + static_bytes;
                assert_eq!(cache.bytes().total(), held, "{}: {tokens} tokens", case.name);
            }
            cache.truncate(40).unwrap();
            let held = (HELD.load(Ordering::Relaxed) - empty) as u64 + static_bytes;
            assert_eq!(cache.bytes().total(), held, "{}: cut to 40 tokens", case.name);
        }
    });
}
