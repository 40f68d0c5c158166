//! LAPACK as a second opinion: the same decompositions by a library that is found when the program runs.
//!
//! Nothing is linked: the crate builds on machines without LAPACK, and a program says at run time which library it
//! wants, by the variable `LEANBITS_LAPACK` or by having one where the system looks for shared libraries. OpenBLAS,
//! MKL, ATLAS and the reference LAPACK all do, with 32-bit or 64-bit integers, the renamed copies inside Python
//! packages too.
#![expect(unsafe_code, reason = "calls into a library of another language")]

use crate::view::{check, check_result, check_square};
use crate::{Eigh, Error, Qr, RandomizedSvd, Svd, gaussian};
use ndarray::{Array1, Array2, ArrayView2, Axis, Slice};
use std::ffi::{CStr, CString, c_char, c_void};

/// The variable that names the library.
pub const VARIABLE: &str = "LEANBITS_LAPACK";
/// Where else it is looked for.
const LIBRARIES: [&str; 5] =
    ["libopenblas.so.0", "libmkl_rt.so.2", "liblapack.so.3", "libopenblas.dylib", "liblapack.dylib"];
/// How names of functions are decorated, and whether integers have 64 bits.
const DECORATIONS: [(&str, &str, bool); 4] =
    [("", "_", false), ("", "_64_", true), ("scipy_", "_", false), ("scipy_", "_64_", true)];

/// A LAPACK library with its BLAS, loaded into this process for good.
///
/// It may run threads of its own (`OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS`), and promises no bits.
///
/// ```
/// use quant_linalg::{gaussian, lapack::Lapack, svd};
/// if let Ok(lapack) = Lapack::find() {
///     let a = gaussian(30, 20, 1);
///     let (theirs, ours) = (lapack.svd(a.view())?, svd(a.view())?);
///     assert!((theirs.s - ours.s).iter().all(|apart| apart.abs() < 1e-12));
/// }
/// # Ok::<(), quant_linalg::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lapack {
    name: String,
    wide: bool,
    gesdd: Symbol,
    syevd: Symbol,
    potrf: Symbol,
    geqrf: Symbol,
    orgqr: Symbol,
    gemm: Symbol,
}

/// The address of a function.
#[derive(Clone, Copy, Debug)]
struct Symbol(*const c_void);

// SAFETY: code of a library that is never unloaded can be called from any thread; LAPACK 3 has no state.
unsafe impl Send for Symbol {}
// SAFETY: as above.
unsafe impl Sync for Symbol {}

/// An integer as the library was built for.
trait Integer: Copy {
    const ZERO: Self;
    const QUERY: Self;
    fn of(value: usize) -> Result<Self, Error>;
    fn get(self) -> i64;
}

impl Integer for i32 {
    const ZERO: Self = 0;
    const QUERY: Self = -1;
    fn of(value: usize) -> Result<Self, Error> {
        Self::try_from(value).map_err(|_| Error::Overflow)
    }
    fn get(self) -> i64 {
        self.into()
    }
}

impl Integer for i64 {
    const ZERO: Self = 0;
    const QUERY: Self = -1;
    fn of(value: usize) -> Result<Self, Error> {
        Self::try_from(value).map_err(|_| Error::Overflow)
    }
    fn get(self) -> i64 {
        self
    }
}

/// Calls a method for the integers of the library.
macro_rules! by_integer {
    ($self:ident.$method:ident($($arg:expr),*)) => {
        if $self.wide { $self.$method::<i64>($($arg),*) } else { $self.$method::<i32>($($arg),*) }
    };
}

type Gesdd<I> = unsafe extern "C" fn(
    *const c_char,
    *const I,
    *const I,
    *mut f64,
    *const I,
    *mut f64,
    *mut f64,
    *const I,
    *mut f64,
    *const I,
    *mut f64,
    *const I,
    *mut I,
    *mut I,
);
type Syevd<I> = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const I,
    *mut f64,
    *const I,
    *mut f64,
    *mut f64,
    *const I,
    *mut I,
    *const I,
    *mut I,
);
type Potrf<I> = unsafe extern "C" fn(*const c_char, *const I, *mut f64, *const I, *mut I);
type Geqrf<I> = unsafe extern "C" fn(*const I, *const I, *mut f64, *const I, *mut f64, *mut f64, *const I, *mut I);
type Orgqr<I> =
    unsafe extern "C" fn(*const I, *const I, *const I, *mut f64, *const I, *const f64, *mut f64, *const I, *mut I);
type Gemm<I> = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const I,
    *const I,
    *const I,
    *const f64,
    *const f64,
    *const I,
    *const f64,
    *const I,
    *const f64,
    *mut f64,
    *const I,
);

fn letter(letter: u8) -> c_char {
    c_char::from_ne_bytes([letter])
}

impl Lapack {
    /// The library that the variable names, or else the first that the system has.
    ///
    /// # Errors
    ///
    /// [`Error::NoLapack`] with what was tried.
    pub fn find() -> Result<Self, Error> {
        let named = std::env::var(VARIABLE).ok();
        let names: Vec<&str> = named.as_deref().map_or(LIBRARIES.to_vec(), |name| vec![name]);
        names.iter().find_map(|name| Self::open(name)).ok_or_else(|| Error::NoLapack { tried: names.join(", ") })
    }

    fn open(name: &str) -> Option<Self> {
        let file = CString::new(name).ok()?;
        // SAFETY: the name is a string that ends in 0. What the library does when it is loaded is up to whoever started
        // this program: it is found as the system finds libraries, or named in the environment, which could preload it
        // as well.
        let library = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return None;
        }
        DECORATIONS.iter().find_map(|&(before, after, wide)| {
            let symbol = |name: &str| {
                let name = CString::new(format!("{before}{name}{after}")).ok()?;
                symbol(library, &name)
            };
            Some(Self {
                name: name.to_owned(),
                wide,
                gesdd: symbol("dgesdd")?,
                syevd: symbol("dsyevd")?,
                potrf: symbol("dpotrf")?,
                geqrf: symbol("dgeqrf")?,
                orgqr: symbol("dorgqr")?,
                gemm: symbol("dgemm")?,
            })
        })
    }

    /// The library's file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// [`svd`](crate::svd) by `dgesdd`, divide and conquer.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn svd(&self, a: ArrayView2<'_, f64>) -> Result<Svd, Error> {
        check(a)?;
        by_integer!(self.svd_with(a))
    }

    fn svd_with<I: Integer>(&self, a: ArrayView2<'_, f64>) -> Result<Svd, Error> {
        // A row-major matrix is the transpose of a column-major one: Aᵀ = V S Uᵀ, and the results are Vᵀ and U
        // row-major.
        let (m, n) = a.dim();
        let k = m.min(n);
        let mut a = a.as_standard_layout().into_owned();
        let (mut s, mut u, mut vt) = (vec![0.0; k], Array2::<f64>::zeros((m, k)), Array2::<f64>::zeros((k, n)));
        let (rows, columns, small) = (I::of(n)?, I::of(m)?, I::of(k)?);
        let mut integers = vec![I::ZERO; 8 * k];
        let (job, mut info) = (letter(b'S'), I::ZERO);
        // SAFETY: the symbol is LAPACK's dgesdd with these integers.
        let gesdd: Gesdd<I> = unsafe { std::mem::transmute(self.gesdd.0) };
        let mut run = |work: &mut [f64], length: I| {
            // SAFETY: the matrices have the sizes that are passed with them, `integers` 8·min(m, n) elements, and
            // `work` has `length`, or one when `length` is -1 and the size is asked for.
            unsafe {
                gesdd(
                    &raw const job,
                    &raw const rows,
                    &raw const columns,
                    a.as_mut_ptr(),
                    &raw const rows,
                    s.as_mut_ptr(),
                    vt.as_mut_ptr(),
                    &raw const rows,
                    u.as_mut_ptr(),
                    &raw const small,
                    work.as_mut_ptr(),
                    &raw const length,
                    integers.as_mut_ptr(),
                    &raw mut info,
                );
            }
        };
        with_workspace(&mut run)?;
        if info.get() != 0 {
            return Err(Error::NoConvergence { rows: m, columns: n });
        }
        let svd = Svd { u, s: Array1::from_vec(s), vt };
        check_result(svd.s.iter().chain(&svd.u).chain(&svd.vt))?;
        Ok(svd)
    }

    /// [`eigh`](crate::eigh) by `dsyevd`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn eigh(&self, a: ArrayView2<'_, f64>) -> Result<Eigh, Error> {
        check_square(a)?;
        by_integer!(self.eigh_with(a))
    }

    fn eigh_with<I: Integer>(&self, a: ArrayView2<'_, f64>) -> Result<Eigh, Error> {
        let size = a.nrows();
        // The lower triangle of rows is the upper one of columns.
        let (mut vectors, mut values) = (a.as_standard_layout().into_owned(), vec![0.0; size]);
        let (n, count) = (I::of(size)?, I::of(3 + 5 * size)?);
        let mut integers = vec![I::ZERO; 3 + 5 * size];
        let (job, triangle, mut info) = (letter(b'V'), letter(b'U'), I::ZERO);
        // SAFETY: the symbol is LAPACK's dsyevd with these integers.
        let syevd: Syevd<I> = unsafe { std::mem::transmute(self.syevd.0) };
        let mut run = |work: &mut [f64], length: I| {
            // SAFETY: as in `svd_with`; `integers` has `count` elements, 3 + 5 n as documented.
            unsafe {
                syevd(
                    &raw const job,
                    &raw const triangle,
                    &raw const n,
                    vectors.as_mut_ptr(),
                    &raw const n,
                    values.as_mut_ptr(),
                    work.as_mut_ptr(),
                    &raw const length,
                    integers.as_mut_ptr(),
                    &raw const count,
                    &raw mut info,
                );
            }
        };
        with_workspace(&mut run)?;
        if info.get() != 0 {
            return Err(Error::NoConvergence { rows: size, columns: size });
        }
        Ok(Eigh { values: Array1::from_vec(values), vectors: vectors.t().as_standard_layout().into_owned() })
    }

    /// [`cholesky`](crate::cholesky) by `dpotrf`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn cholesky(&self, a: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
        check_square(a)?;
        by_integer!(self.cholesky_with(a))
    }

    fn cholesky_with<I: Integer>(&self, a: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
        let mut l = a.as_standard_layout().into_owned();
        let (n, triangle, mut info) = (I::of(a.nrows())?, letter(b'U'), I::ZERO);
        // SAFETY: the symbol is LAPACK's dpotrf with these integers; the matrix is n × n.
        unsafe {
            let potrf: Potrf<I> = std::mem::transmute(self.potrf.0);
            potrf(&raw const triangle, &raw const n, l.as_mut_ptr(), &raw const n, &raw mut info);
        }
        if let Ok(pivot @ 1..) = usize::try_from(info.get()) {
            return Err(Error::NotPositiveDefinite { pivot: pivot - 1 });
        }
        l.indexed_iter_mut().filter(|((i, j), _)| j > i).for_each(|(_, value)| *value = 0.0);
        Ok(l)
    }

    /// [`qr`](crate::qr) by `dgeqrf` and `dorgqr`, for matrices with no fewer rows than columns.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::NonFinite`], and [`Error::Rank`] for a matrix with more columns than rows.
    pub fn qr(&self, a: ArrayView2<'_, f64>) -> Result<Qr, Error> {
        check(a)?;
        let (rows, columns) = a.dim();
        if columns > rows {
            return Err(Error::Rank { rank: columns, rows, columns });
        }
        by_integer!(self.qr_with(a))
    }

    fn qr_with<I: Integer>(&self, a: ArrayView2<'_, f64>) -> Result<Qr, Error> {
        let (rows, columns) = a.dim();
        let mut q = a.t().as_standard_layout().into_owned();
        let (m, n, mut tau, mut info) = (I::of(rows)?, I::of(columns)?, vec![0.0; columns], I::ZERO);
        // SAFETY: the symbol is LAPACK's dgeqrf with these integers.
        let geqrf: Geqrf<I> = unsafe { std::mem::transmute(self.geqrf.0) };
        // SAFETY: the matrix is m × n in columns, `tau` has n elements, `work` as in `svd_with`.
        with_workspace(&mut |work: &mut [f64], length: I| unsafe {
            let (a, tau) = (q.as_mut_ptr(), tau.as_mut_ptr());
            geqrf(
                &raw const m,
                &raw const n,
                a,
                &raw const m,
                tau,
                work.as_mut_ptr(),
                &raw const length,
                &raw mut info,
            );
        })?;
        let r = Array2::from_shape_fn((columns, columns), |(i, j)| if j >= i { q[(j, i)] } else { 0.0 });
        // SAFETY: the symbol is LAPACK's dorgqr with these integers.
        let orgqr: Orgqr<I> = unsafe { std::mem::transmute(self.orgqr.0) };
        // SAFETY: the reflectors are those of dgeqrf, sizes as there.
        with_workspace(&mut |work: &mut [f64], length: I| unsafe {
            let (a, work, tau) = (q.as_mut_ptr(), work.as_mut_ptr(), tau.as_ptr());
            orgqr(
                &raw const m,
                &raw const n,
                &raw const n,
                a,
                &raw const m,
                tau,
                work,
                &raw const length,
                &raw mut info,
            );
        })?;
        Ok(Qr { q: q.t().as_standard_layout().into_owned(), r })
    }

    /// `a b` by `dgemm`.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] when the inner dimensions differ.
    pub fn matmul(&self, a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
        if a.ncols() != b.nrows() {
            return Err(Error::Rank { rank: a.ncols(), rows: b.nrows(), columns: b.ncols() });
        }
        by_integer!(self.matmul_with(a, b))
    }

    fn matmul_with<I: Integer>(&self, a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Result<Array2<f64>, Error> {
        let mut out = Array2::zeros((a.nrows(), b.ncols()));
        if out.is_empty() || a.ncols() == 0 {
            return Ok(out);
        }
        let (m, n, k) = (I::of(a.nrows())?, I::of(b.ncols())?, I::of(a.ncols())?);
        // Either operand may be transposed in place; out is row-major, so what is computed is outᵀ = bᵀ aᵀ.
        let operand = |x: ArrayView2<'_, f64>, rows: I, columns: I| {
            let transposed = x.t().is_standard_layout() && !x.is_standard_layout();
            let owned = if transposed { x.t().to_owned() } else { x.as_standard_layout().into_owned() };
            (owned, letter(if transposed { b'T' } else { b'N' }), if transposed { rows } else { columns })
        };
        let ((a, how_a, stride_a), (b, how_b, stride_b)) = (operand(a, m, k), operand(b, k, n));
        let (one, zero) = (1.0, 0.0);
        // SAFETY: the symbol is BLAS's dgemm with these integers; the matrices have the sizes and strides that are
        // passed.
        unsafe {
            let gemm: Gemm<I> = std::mem::transmute(self.gemm.0);
            gemm(
                &raw const how_b,
                &raw const how_a,
                &raw const n,
                &raw const m,
                &raw const k,
                &raw const one,
                b.as_ptr(),
                &raw const stride_b,
                a.as_ptr(),
                &raw const stride_a,
                &raw const zero,
                out.as_mut_ptr(),
                &raw const n,
            );
        }
        Ok(out)
    }

    /// [`randomized_svd`](crate::randomized_svd), every step by LAPACK and all of it in f64: the same directions from
    /// the same seed.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn randomized_svd(&self, a: ArrayView2<'_, f64>, config: RandomizedSvd) -> Result<Svd, Error> {
        check(a)?;
        let (m, n) = a.dim();
        let RandomizedSvd { rank, oversample, power_iterations, seed } = config;
        if rank == 0 || rank > m.min(n) {
            return Err(Error::Rank { rank, rows: m, columns: n });
        }
        let width = rank.saturating_add(oversample).min(m.min(n));
        let mut directions = gaussian(n, width, seed);
        for _ in 0..power_iterations {
            let left = self.qr(self.matmul(a, directions.view())?.view())?.q;
            directions = self.qr(self.matmul(a.t(), left.view())?.view())?.q;
        }
        let q = self.qr(self.matmul(a, directions.view())?.view())?.q;
        let small = self.svd(self.matmul(q.t(), a)?.view())?;
        let first = Slice::from(..rank);
        Ok(Svd {
            u: self.matmul(q.view(), small.u.slice_axis(Axis(1), first))?,
            s: small.s.slice_axis(Axis(0), first).to_owned(),
            vt: small.vt.slice_axis(Axis(0), first).to_owned(),
        })
    }
}

fn symbol(library: *mut c_void, name: &CStr) -> Option<Symbol> {
    // SAFETY: the library is open and the name ends in 0.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!address.is_null()).then_some(Symbol(address))
}

/// Asks for the size of the workspace, and runs with one.
fn with_workspace<I: Integer>(run: &mut dyn FnMut(&mut [f64], I)) -> Result<(), Error> {
    let mut best = [0.0];
    run(&mut best, I::QUERY);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the library says a number of elements"
    )]
    let length = best[0].max(1.0) as usize;
    run(&mut vec![0.0; length], I::of(length)?);
    Ok(())
}
