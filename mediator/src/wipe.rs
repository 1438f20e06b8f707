//! Memory that is given back is wiped first: what a parser, a buffer or a string held of a
//! password does not lie in the heap until chance writes over it (R31: no secret in a core dump).
//!
//! Secrets are in types that wipe themselves; this is for the copies that libraries make of them
//! on the way. Costs a write of memory that was just in use.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    ptr,
};

/// The system's allocator, wiping.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wiping;

#[expect(unsafe_code, reason = "an allocator is; each call is passed on as it came")]
// SAFETY: every call goes to the system's allocator with the arguments that it came with;
// `realloc` is the trait's own, which allocates, copies and gives back.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the block was allocated with this layout and is the caller's until below.
        unsafe { ptr::write_bytes(pointer, 0, layout.size()) };
        // Or the compiler would know that nobody reads it any more.
        black_box(pointer);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
