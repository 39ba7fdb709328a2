// A cache outside the Java heap, as databases and brokers keep one: values in direct buffers and in memory of Unsafe, replaced at
// random by several threads. Runs on any allocator; `run.sh` runs it on the system's and on Terrane.
//
//   java OffHeap.java [seconds] [threads]

import java.lang.reflect.Field;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.atomic.AtomicLong;
import sun.misc.Unsafe;

public final class OffHeap {
    static final Unsafe UNSAFE = unsafe();
    static final int SLOTS = 20_000;

    static Unsafe unsafe() {
        try {
            Field field = Unsafe.class.getDeclaredField("theUnsafe");
            field.setAccessible(true);
            return (Unsafe) field.get(null);
        } catch (ReflectiveOperationException cause) {
            throw new AssertionError(cause);
        }
    }

    /** Lengths as of cached values: many short, some long. */
    static int length(long random) {
        int shift = 5 + (int) (random >>> 60) * 9 / 16;
        return (1 << shift) + (int) (random >>> 32 & (1 << shift) - 1);
    }

    static final AtomicLong operations = new AtomicLong();

    static void work(long seed, long until) {
        long[] addresses = new long[SLOTS];
        int[] lengths = new int[SLOTS];
        ByteBuffer[] buffers = new ByteBuffer[64];
        long random = seed * 0x9E3779B97F4A7C15L | 1;
        long done = 0;
        while (System.nanoTime() < until) {
            for (int i = 0; i < 1000; i++, done++) {
                random ^= random << 13;
                random ^= random >>> 7;
                random ^= random << 17;
                int slot = (int) Long.remainderUnsigned(random, SLOTS);
                if (addresses[slot] != 0) {
                    long last = addresses[slot] + lengths[slot] - 1;
                    if (UNSAFE.getByte(addresses[slot]) != (byte) slot || UNSAFE.getByte(last) != (byte) slot)
                        throw new AssertionError("slot " + slot + " lost its contents");
                    UNSAFE.freeMemory(addresses[slot]);
                }
                lengths[slot] = length(random * 0x2545F4914F6CDD1DL);
                addresses[slot] = UNSAFE.allocateMemory(lengths[slot]);
                UNSAFE.putByte(addresses[slot], (byte) slot);
                UNSAFE.putByte(addresses[slot] + lengths[slot] - 1, (byte) slot);
            }
            // A direct buffer a while: the collector frees the ones that are dropped.
            int place = (int) (done / 1000 % buffers.length);
            buffers[place] = ByteBuffer.allocateDirect(64 << 10);
            buffers[place].putLong(0, done);
            if (buffers[place].getLong(0) != done) throw new AssertionError("a direct buffer lost its contents");
        }
        for (long address : addresses) if (address != 0) UNSAFE.freeMemory(address);
        operations.addAndGet(done);
    }

    static long status(String name) throws Exception {
        for (String line : Files.readAllLines(Path.of("/proc/self/status")))
            if (line.startsWith(name)) return Long.parseLong(line.replaceAll("[^0-9]", ""));
        return 0;
    }

    public static void main(String[] arguments) throws Exception {
        double seconds = arguments.length > 0 ? Double.parseDouble(arguments[0]) : 3;
        int count = arguments.length > 1 ? Integer.parseInt(arguments[1]) : 2;
        long start = System.nanoTime();
        Thread[] threads = new Thread[count];
        for (int i = 0; i < count; i++) {
            long seed = i + 1;
            threads[i] = new Thread(() -> work(seed, start + (long) (seconds * 1e9)));
            threads[i].setUncaughtExceptionHandler((thread, cause) -> {
                cause.printStackTrace();
                Runtime.getRuntime().halt(1);
            });
            threads[i].start();
        }
        for (Thread thread : threads) thread.join();
        double each = (System.nanoTime() - start) / (double) operations.get() * count;
        long peak = status("VmHWM");
        System.gc();
        Thread.sleep(600);
        System.out.printf("%d replacements, %.0f ns each per thread, peak %d MiB, afterwards %d MiB%n",
                operations.get(), each, peak >> 10, status("VmRSS") >> 10);
    }
}
